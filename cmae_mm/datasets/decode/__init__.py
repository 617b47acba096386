from .arrays import arrange
from .convert import (
    change_type,
    choose_channels,
    fill_missing,
    find_missing,
    is_grey,
    natural_dtype,
    resize_image,
)
from .decode import decode_image, finish, peek, read_image
from .raster import from_pillow
from .raw_image import RawImage, UndecodableImage, UnfitImage
from .settings import (
    IMAGE_DTYPES,
    MAX_CHANNELS,
    RGB,
    ImageSettings,
    make_settings,
)
from .sniffing import is_dicom, is_jpeg

__all__ = [
    'IMAGE_DTYPES', 'ImageSettings', 'MAX_CHANNELS', 'RGB', 'RawImage',
    'UndecodableImage', 'UnfitImage', 'arrange', 'change_type',
    'choose_channels', 'decode_image', 'fill_missing', 'find_missing',
    'finish', 'from_pillow', 'is_dicom', 'is_grey', 'is_jpeg',
    'make_settings', 'natural_dtype', 'peek', 'read_image', 'resize_image'
]
