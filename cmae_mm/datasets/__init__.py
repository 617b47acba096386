from .pretraining_dataset import PretrainingDataset
from .transforms import LoadImageOrSkip, PixelShift

__all__ = ['LoadImageOrSkip', 'PixelShift', 'PretrainingDataset']
