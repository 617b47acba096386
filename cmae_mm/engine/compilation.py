"""Compilation of the parts of a pre-training step."""
import copy
import os
import shutil
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import nn

from ..models import CMAE

# Masks, random draws, collectives and checks of values are not compiled: draws
# must not change, and graphs must not break.
_PARTS = (
    ('data_preprocessor', 'augment'),
    ('backbone', 'embed'),
    ('backbone', 'encode'),
    ('neck.pixel_decoder', 'forward'),
    ('neck.feature_decoder', 'forward'),
    ('target.encoder', 'embed'),
    ('target.encoder', 'encode'),
    ('head.reconstruction', 'loss'),
)


class _WhileTraining:
    """Method compiled in training mode only.

    In evaluation it would be compiled for each batch size.

    Args:
        method (Callable): A bound method of a module.
        options (dict): Arguments of ``torch.compile``.
    """

    def __init__(self, method: Any, options: Dict[str, Any]) -> None:
        self.method = method
        self.options = options
        self.compiled = torch.compile(method, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the compiled method in training mode, or the method.

        Raises:
            RuntimeError: If torch cannot compile the method.
        """
        from torch._dynamo.exc import TorchDynamoException
        module = self.method.__self__
        if not module.training:
            return self.method(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except TorchDynamoException as error:
            reason = ' '.join(str(error).strip().split('\n')[0].split())
            raise RuntimeError(
                f'torch {torch.__version__} cannot compile '
                f'{type(module).__name__} ({reason}); remove compile, or '
                'update torch') from error

    def __deepcopy__(self, memo: dict) -> '_WhileTraining':
        # A copied module must use its own parameters.
        return _WhileTraining(copy.deepcopy(self.method, memo), self.options)


def compile_parts(model: CMAE, **options: Any) -> None:
    """Compile methods of a model's modules, in place.

    The modules and the names in checkpoints do not change. Whole graphs of
    fixed shapes are compiled at the first call; results change by rounding.

    Args:
        model (CMAE): The model, on its device.
        **options: Arguments of ``torch.compile``, over ``fullgraph=True,
            dynamic=False``.

    Raises:
        RuntimeError: If the model is on a CPU without a C++ compiler.
    """
    _check_compiler(model)
    options = dict(fullgraph=True, dynamic=False) | options
    # CUDA graphs keep what a part returns until the next step.
    model.data_preprocessor.register_forward_pre_hook(
        lambda *_: torch.compiler.cudagraph_mark_step_begin())
    for module, name in _parts_of(model):
        setattr(module, name, _WhileTraining(getattr(module, name), options))


def _parts_of(model: CMAE) -> Iterator[Tuple[nn.Module, str]]:
    on_cpu = next(model.parameters()).device.type == 'cpu'
    for path, name in _PARTS:
        # On a CPU views are augmented one by one.
        if on_cpu and path == 'data_preprocessor':
            continue
        module: Any = model
        for step in path.split('.'):
            module = getattr(module, step, None)
        if module is not None and hasattr(module, name):
            yield module, name


def _check_compiler(model: nn.Module) -> None:
    if next(model.parameters()).device.type != 'cpu':
        return
    names = [os.environ.get('CXX'), 'g++', 'clang++', 'c++']
    if not any(name and shutil.which(name) for name in names):
        raise RuntimeError(
            'compile=True on a CPU needs a C++ compiler, but none was found; '
            'install g++, set the environment variable CXX, or remove compile')
