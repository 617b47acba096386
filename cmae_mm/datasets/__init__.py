import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import LabelledDataset, PretrainingDataset
    from .samplers import (
        BlockShuffleSampler,
        SeededInfiniteSampler,
        SeededSampler,
    )
    from .transforms import (
        LoadCanvas,
        LoadImage,
        LoadImageOrSkip,
        PixelShift,
        ResizeImage,
        SeedDraws,
    )

__all__ = [
    'BlockShuffleSampler', 'LabelledDataset', 'LoadCanvas', 'LoadImage',
    'LoadImageOrSkip', 'PixelShift', 'PretrainingDataset', 'ResizeImage',
    'SeedDraws', 'SeededInfiniteSampler', 'SeededSampler'
]


def __getattr__(name: str) -> Any:
    """Import a registered class; ``cmae stats`` needs none of them."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = ('datasets' if name.endswith('Dataset') else
              'samplers' if name.endswith('Sampler') else 'transforms')
    return getattr(importlib.import_module(f'.{module}', __name__), name)
