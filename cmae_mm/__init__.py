"""Contrastive Masked Autoencoders for the OpenMMLab libraries.

Importing this package registers its classes in MMPretrain's registries, so
``custom_imports = dict(imports=['cmae_mm'])`` adds them to any project.
"""
from .dependencies import check_dependencies, check_transformers

check_dependencies()
check_transformers()

from . import checkpoints, datasets, engine, models  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'checkpoints', 'datasets', 'engine', 'models']
