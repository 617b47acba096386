from .labelled_dataset import LabelledDataset
from .pretraining_dataset import PretrainingDataset
from .samplers import SeededInfiniteSampler, SeededSampler
from .transforms import (
    LoadCanvas,
    LoadImage,
    LoadImageOrSkip,
    PixelShift,
    SeedDraws,
)

__all__ = [
    'LabelledDataset', 'LoadCanvas', 'LoadImage', 'LoadImageOrSkip',
    'PixelShift', 'PretrainingDataset', 'SeedDraws', 'SeededInfiniteSampler',
    'SeededSampler'
]
