from .loading import LoadImageOrSkip
from .pixel_shift import PixelShift

__all__ = ['LoadImageOrSkip', 'PixelShift']
