from .load_canvas import LoadCanvas
from .loading import LoadImageOrSkip
from .pixel_shift import PixelShift

__all__ = ['LoadCanvas', 'LoadImageOrSkip', 'PixelShift']
