from .load_canvas import LoadCanvas
from .loading import LoadImage, LoadImageOrSkip
from .pixel_shift import PixelShift
from .resize_image import ResizeImage
from .seed_draws import SeedDraws

__all__ = ['LoadCanvas', 'LoadImage', 'LoadImageOrSkip', 'PixelShift',
           'ResizeImage', 'SeedDraws']
