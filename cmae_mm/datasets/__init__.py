from .block_sampler import BlockShuffleSampler
from .labelled_dataset import LabelledDataset
from .pretraining_dataset import PretrainingDataset
from .samplers import SeededInfiniteSampler, SeededSampler
from .transforms import LoadCanvas, LoadImageOrSkip, PixelShift, SeedDraws

__all__ = [
    'BlockShuffleSampler', 'LabelledDataset', 'LoadCanvas', 'LoadImageOrSkip',
    'PixelShift', 'PretrainingDataset', 'SeedDraws', 'SeededInfiniteSampler',
    'SeededSampler'
]
