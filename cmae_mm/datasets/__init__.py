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
