"""Sharding, activation checkpointing and compilation of a model."""
import copy
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models import CMAE
from ..models.utils import is_sharded


def transformer_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find layers of a model in module lists.

    Args:
        model (nn.Module): The model.

    Returns:
        dict[str, nn.Module]: The members of each outermost
        ``nn.ModuleList`` that have parameters, by name, in the model's
        order.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(
                name.startswith(f'{layer}.') for layer in found):
            continue
        for number, layer in enumerate(module):
            if next(layer.parameters(), None) is not None:
                found[f'{name}.{number}'] = layer
    return found


def checkpoint_activations(model: nn.Module,
                           modules: bool | str | list[str]) -> int:
    """Recompute the activations of some modules in the backward pass.

    mmengine's ``turn_on_activation_checkpointing`` uses torch's reentrant
    variant, in which a module whose input is an image gets no gradients.

    Args:
        model (nn.Module): The model, modified in place.
        modules (bool | str | list[str]): True for all trained transformer
            layers, which saves most memory and takes a quarter more time; or
            names of modules. The name of a module list (``backbone.layers``)
            selects each of its layers.

    Returns:
        int: Number of checkpointed modules.

    Raises:
        ValueError: If the model does not have such a module.
    """
    if modules is True:
        chosen = [layer for layer in transformer_layers(model).values()
                  if any(p.requires_grad for p in layer.parameters())]
        if not chosen:
            raise ValueError(
                f'activation_checkpointing=True found no list of layers in '
                f'{type(model).__name__}; name modules of it instead')
    else:
        names = [modules] if isinstance(modules, str) else modules or []
        chosen = [layer for name in names for layer in _named(model, name)]
    for module in chosen:
        module.forward = partial(
            checkpoint, module.forward, use_reentrant=False)
    return len(chosen)


def _named(model: nn.Module, name: str) -> list[nn.Module]:
    try:
        module = attrgetter(name)(model)
    except AttributeError:
        children = ', '.join(n for n, _ in model.named_children())
        raise ValueError(
            f'activation_checkpointing names {name!r}, which '
            f'{type(model).__name__} does not have; it has {children} and '
            'their modules') from None
    return list(module) if isinstance(module, nn.ModuleList) else [module]


try:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions, get_model_state_dict, get_optimizer_state_dict,
        set_model_state_dict, set_optimizer_state_dict)
    from torch.distributed.fsdp import FSDPModule, fully_shard
except ImportError:  # before torch 2.6
    fully_shard = None


def check_can_shard() -> None:
    """Check torch's version and that a launcher started this process.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If no launcher started this process.
    """
    if fully_shard is None:
        raise ImportError(
            'sharding needs torch 2.6 or newer, but this is '
            f'{torch.__version__}; train with the config without fsdp in its '
            'name, or update torch')
    if not dist.is_initialized():
        raise ValueError(
            'ShardedRunner shards a model over ranks, but this is one '
            'process; start it with tools/dist_train.sh CONFIG GPUS')


def shard(model: nn.Module, reshard_after_forward: bool = True) -> None:
    """Shard each parameter of a model over all ranks, in place.

    Each transformer layer is a unit that is gathered during its computation;
    the rest of the model is another unit. Names and classes do not change.
    Parameters are sharded by rows, so online and target parameters, which have
    the same shapes, are sharded alike.

    Args:
        model (nn.Module): The model, the same on all ranks.
        reshard_after_forward (bool): Whether to free a layer's gathered
            parameters between forward and backward pass. Defaults to True.
    """
    mesh = dist.device_mesh.init_device_mesh(
        get_device().split(':')[0], (get_world_size(), ))
    for layer in transformer_layers(model).values():
        fully_shard(layer, mesh=mesh,
                    reshard_after_forward=reshard_after_forward)
    # The rest is needed at once in the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    model.reshards_after_forward = reshard_after_forward


@contextmanager
def full_parameters(model: nn.Module) -> Iterator[None]:
    """Gather all parameters for work outside of training steps.

    All ranks must run the same modules in this context, since torch prefetches
    for the next backward pass in the order of the last forward pass. Unsharded
    models do not change.

    Args:
        model (nn.Module): The model, on all ranks.
    """
    units = []
    if is_sharded(model):
        units = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(
                unit is not model and model.reshards_after_forward,
                recurse=False)


def full_model_state(model: nn.Module) -> 'OrderedDict[str, Tensor]':
    """Gather a sharded model's state on rank 0; all ranks must call it.

    Args:
        model (nn.Module): The model.

    Returns:
        OrderedDict[str, Tensor]: On CPUs; empty on other ranks.
    """
    return OrderedDict(get_model_state_dict(model, options=StateDictOptions(
        full_state_dict=True, cpu_offload=True)))


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a whole state dict into a model, sharded or not.

    Args:
        model (nn.Module): The model, on all ranks.
        state (dict[str, Tensor]): A state dict that fits it.
    """
    if is_sharded(model):
        set_model_state_dict(model, state, options=StateDictOptions(
            full_state_dict=True, strict=False))
    else:
        model.load_state_dict(state, strict=False)


def full_optimizer_state(model: nn.Module, wrapper: Any) -> dict[str, Any]:
    """Gather a sharded optimizer's state on rank 0; all ranks must call it.

    Args:
        model (nn.Module): The model.
        wrapper (OptimWrapper): The optimizer wrapper.

    Returns:
        dict[str, Any]: State of an unsharded optimizer, on the CPU; without
        tensors on other ranks.
    """
    whole = wrapper.state_dict()
    if whole['state']:  # otherwise torch would create it with a step
        state = get_optimizer_state_dict(
            model, wrapper.optimizer, options=StateDictOptions(
                full_state_dict=True, cpu_offload=True)).get('state', {})
        whole['state'] = {
            number: state[name]
            for number, name in enumerate(_names(model, wrapper))
            if name in state}
    return whole


def load_optimizer_state(model: nn.Module, wrapper: Any,
                         state: dict[str, Any]) -> None:
    """Load a whole state into a sharded optimizer, on all ranks.

    Args:
        model (nn.Module): The model.
        wrapper (OptimWrapper): The optimizer wrapper.
        state (dict[str, Any]): A state of an unsharded optimizer, or of
            :func:`full_optimizer_state`.
    """
    if state['state']:
        names = _names(model, wrapper)
        by_name = dict(
            state={names[n]: dict(v) for n, v in state['state'].items()},
            param_groups=[
                dict(group, params=[names[n] for n in group['params']])
                for group in state['param_groups']])
        set_optimizer_state_dict(
            model, wrapper.optimizer, by_name, options=StateDictOptions(
                full_state_dict=True))
        state = dict(state, state=wrapper.optimizer.state_dict()['state'])
    wrapper.load_state_dict(state)


def _names(model: nn.Module, wrapper: Any) -> list:
    """List the names of an optimizer's parameters in its order."""
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for group in wrapper.optimizer.param_groups
            for p in group['params']]


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

    def __init__(self, method: Any, options: dict[str, Any]) -> None:
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
    if hasattr(torch.compiler, 'cudagraph_mark_step_begin'):  # torch 2.2
        model.data_preprocessor.register_forward_pre_hook(
            lambda *_: torch.compiler.cudagraph_mark_step_begin())
    for module, name in _parts_of(model):
        setattr(module, name, _WhileTraining(getattr(module, name), options))


def _parts_of(model: CMAE) -> Iterator[tuple[nn.Module, str]]:
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
