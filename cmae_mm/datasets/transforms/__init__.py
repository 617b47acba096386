from .loading import LoadCanvas, LoadImage, LoadImageOrSkip
from .views import PixelShift, ResizeImage, SeedDraws

__all__ = ['LoadCanvas', 'LoadImage', 'LoadImageOrSkip', 'PixelShift',
           'ResizeImage', 'SeedDraws']
