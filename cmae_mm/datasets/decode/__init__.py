from .convert import (
    change_type,
    choose_channels,
    fill_missing,
    find_missing,
    is_grey,
    natural_dtype,
    resize_image,
)
from .decode import decode_image, peek, read_image, say_left_out
from .raster import has_alpha
from .raw_image import RawImage, UndecodableImage, UnfitImage
from .settings import (
    IMAGE_DTYPES,
    MAX_CHANNELS,
    RGB,
    ImageSettings,
    make_settings,
)
from .sniffing import is_dicom, is_plain

__all__ = [
    'IMAGE_DTYPES', 'ImageSettings', 'MAX_CHANNELS', 'RGB', 'RawImage',
    'UndecodableImage', 'UnfitImage', 'change_type', 'choose_channels',
    'decode_image', 'fill_missing', 'find_missing', 'has_alpha', 'is_dicom',
    'is_grey', 'is_plain', 'make_settings', 'natural_dtype', 'peek',
    'read_image', 'resize_image', 'say_left_out'
]
