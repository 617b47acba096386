from typing import TYPE_CHECKING

from ..dependencies import import_on_use

if TYPE_CHECKING:
    from .datasets import LabelledDataset, PretrainingDataset
    from .samplers import (BlockShuffleSampler, SeededInfiniteSampler,
                           SeededSampler)
    from .transforms import (LoadCanvas, LoadImage, LoadImageOrSkip,
                             PixelShift, ResizeImage, SeedDraws)

__all__ = [
    'BlockShuffleSampler', 'LabelledDataset', 'LoadCanvas', 'LoadImage',
    'LoadImageOrSkip', 'PixelShift', 'PretrainingDataset', 'ResizeImage',
    'SeedDraws', 'SeededInfiniteSampler', 'SeededSampler'
]

# `cmae stats` does not need them.
__getattr__ = import_on_use(__name__, {
    'datasets': ('LabelledDataset', 'PretrainingDataset'),
    'samplers': ('BlockShuffleSampler', 'SeededInfiniteSampler',
                 'SeededSampler'),
    'transforms': ('LoadCanvas', 'LoadImage', 'LoadImageOrSkip', 'PixelShift',
                   'ResizeImage', 'SeedDraws'),
})
