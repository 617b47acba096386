from .load_canvas import LoadCanvas
from .loading import LoadImageOrSkip
from .pixel_shift import PixelShift
from .seed_draws import SeedDraws

__all__ = ['LoadCanvas', 'LoadImageOrSkip', 'PixelShift', 'SeedDraws']
