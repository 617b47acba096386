from .convert import (
    arrange,
    change_type,
    choose_channels,
    fill_missing,
    find_missing,
    is_grey,
    natural_dtype,
    resize_image,
)
from .decode import decode_image, finish, read_image
from .image import (
    IMAGE_DTYPES,
    MAX_CHANNELS,
    RGB,
    ImageSettings,
    RawImage,
    UndecodableImage,
    UnfitImage,
    is_dicom,
    is_jpeg,
    is_plain,
    make_settings,
)
from .raster import from_pillow

__all__ = [
    'IMAGE_DTYPES', 'ImageSettings', 'MAX_CHANNELS', 'RGB', 'RawImage',
    'UndecodableImage', 'UnfitImage', 'arrange', 'change_type',
    'choose_channels', 'decode_image', 'fill_missing', 'find_missing',
    'finish', 'from_pillow', 'is_dicom', 'is_grey', 'is_jpeg',
    'is_plain',
    'make_settings', 'natural_dtype', 'read_image', 'resize_image'
]
