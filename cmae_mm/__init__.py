"""Contrastive Masked Autoencoders for the OpenMMLab libraries.

Importing this package registers its classes in MMPretrain's registries, so
``custom_imports = dict(imports=['cmae_mm'])`` adds them to any project. (The
command ``cmae`` does so later, when it has understood its arguments.)
"""
import importlib
from typing import TYPE_CHECKING, Any, List

from .entry import check_system, is_command, quiet_imports
from .version import __version__

check_system()

if TYPE_CHECKING:
    from .apis.embedding import embed
    from .apis.encoder import load_encoder
    from .apis.evaluation import (
        dense_knn,
        dense_linear,
        knn,
        linear,
        low_shot,
    )
    from .apis.finetuning import finetune, predict
    from .apis.finished_model import export_model, load_model
    from .apis.training import pretrain

__all__ = [
    '__version__', 'dense_knn', 'dense_linear', 'embed', 'export_model',
    'finetune', 'knn', 'linear', 'load_encoder', 'load_model', 'low_shot',
    'predict', 'pretrain', 'register'
]

# Where the functions for people are; imported when they are first used.
_FUNCTIONS = dict(
    dense_knn='.apis.evaluation',
    dense_linear='.apis.evaluation',
    embed='.apis.embedding',
    export_model='.apis.finished_model',
    finetune='.apis.finetuning',
    knn='.apis.evaluation',
    linear='.apis.evaluation',
    low_shot='.apis.evaluation',
    load_encoder='.apis.encoder',
    load_model='.apis.finished_model',
    predict='.apis.finetuning',
    pretrain='.apis.training')


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        module = importlib.import_module(_FUNCTIONS[name], __name__)
        return getattr(module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> List[str]:
    return sorted({*globals(), *_FUNCTIONS})


def register() -> None:
    """Register all classes; does nothing the second time.

    Raises:
        ImportError: If a library is missing or of a version that does not
            work; one sentence with the command that installs it.
    """
    from .dependencies import import_framework
    import_framework()
    with quiet_imports():
        from . import checkpoints, engine, models, visualization  # noqa: F401
        from .datasets import datasets, samplers, transforms  # noqa: F401
        models.register()


if not is_command():
    register()
