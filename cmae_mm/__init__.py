"""Contrastive Masked Autoencoders for the OpenMMLab libraries.

Importing this package registers its classes in MMPretrain's registries, so
``custom_imports = dict(imports=['cmae_mm'])`` adds them to any project. (The
command ``cmae`` does so later, when it has understood its arguments.)
"""
from .entry import is_command, quiet_imports
from .version import __version__

__all__ = ['__version__', 'register']


def register() -> None:
    """Register all classes; does nothing the second time.

    Raises:
        ImportError: If a library is missing or of a version that does not
            work; one sentence with the command that installs it.
    """
    from .dependencies import check_dependencies, check_transformers
    with quiet_imports():
        check_dependencies()
        check_transformers()
        from . import checkpoints, datasets, engine, models  # noqa: F401


if not is_command():
    register()
