from .convert import (change_type, find_missing, is_grey, natural_dtype,
                      prepare, resize_image, to_hwc)
from .decode import (LargeImage, decode_image, decode_resized, decode_short,
                     decode_windows, finish, read_centre, read_image)
from .image import (IMAGE_DTYPES, MAX_CHANNELS, MAX_PIXELS, RGB, ImageSettings,
                    RawImage, TooLargeImage, UndecodableImage, UnfitImage,
                    first_bytes, is_colour, is_dicom, is_jpeg, is_plain,
                    make_settings, read_file_content)
from .raster import from_pillow

__all__ = [
    'IMAGE_DTYPES', 'ImageSettings', 'LargeImage', 'MAX_CHANNELS',
    'MAX_PIXELS', 'RGB', 'RawImage', 'TooLargeImage', 'UndecodableImage',
    'UnfitImage', 'to_hwc', 'change_type', 'decode_image', 'decode_resized',
    'decode_short', 'decode_windows', 'find_missing', 'finish', 'first_bytes',
    'from_pillow', 'is_colour', 'is_dicom', 'is_grey', 'is_jpeg', 'is_plain',
    'make_settings', 'natural_dtype', 'prepare', 'read_centre', 'read_image',
    'read_file_content', 'resize_image'
]
