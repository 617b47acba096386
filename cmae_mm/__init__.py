"""Contrastive Masked Autoencoders for the OpenMMLab libraries.

Importing this package registers its classes in MMPretrain's registries, so
``custom_imports = dict(imports=['cmae_mm'])`` adds them to any project. (The
command ``cmae`` does so after it has parsed its arguments.)
"""
from typing import TYPE_CHECKING

from .dependencies import (check_system, import_on_use, is_command,
                           quiet_imports)
from .version import __version__

check_system()

if TYPE_CHECKING:
    from .apis.embedding import embed
    from .apis.encoder import load_encoder
    from .apis.evaluation import (dense_knn, dense_linear, frozen, knn, linear,
                                  low_shot)
    from .apis.finetuning import export_model, finetune, predict
    from .apis.training import pretrain
    from .finetuning.model import load_model

__all__ = [
    '__version__', 'dense_knn', 'dense_linear', 'embed', 'export_model',
    'finetune', 'frozen', 'knn', 'linear', 'load_encoder', 'load_model',
    'low_shot', 'predict', 'pretrain', 'register'
]

# The functions for users, imported at first use.
__getattr__ = import_on_use(__name__, {
    'apis.embedding': ('embed', ),
    'apis.encoder': ('load_encoder', ),
    'apis.evaluation': ('dense_knn', 'dense_linear', 'frozen', 'knn',
                        'linear', 'low_shot'),
    'apis.finetuning': ('export_model', 'finetune', 'predict'),
    'apis.training': ('pretrain', ),
    'finetuning.model': ('load_model', ),
})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Register all classes; does nothing the second time.

    Raises:
        ImportError: If a library is missing or of a version that does not
            work; one sentence with the command that installs it.
    """
    from .dependencies import import_framework
    import_framework()
    with quiet_imports():
        from . import engine, models  # noqa: F401
        from .checkpoints import load  # noqa: F401
        from .datasets import datasets, samplers, transforms  # noqa: F401
        models.register()


if not is_command():
    register()
