"""Decoding image files of all sorts to RGB-like uint8 arrays."""
import io
from typing import Optional

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# Above this an image that cannot be decoded at a smaller scale is refused:
# 100 million pixels are 300 MB.
MAX_PIXELS = 100_000_000
_EXIF_MARK = b'Exif\x00\x00'


class UndecodableImage(ValueError):
    """Bytes that are no image, or not one that can be used."""


def decode_image(data: bytes, shrink_to: Optional[int] = None) -> np.ndarray:
    """Decode an image to BGR, upright.

    JPEG files go through libjpeg-turbo. All others, and JPEG files in CMYK or
    with an EXIF orientation, go through Pillow: grey and palette images
    become colour, 16-bit ones 8-bit, and alpha is dropped.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): The caller needs no more than this on the
            shorter side, in pixels: JPEG files are then decoded at 1/2, 1/4
            or 1/8 where that leaves enough. Defaults to None, full size.

    Returns:
        np.ndarray: uint8, (H, W, 3), BGR.

    Raises:
        UndecodableImage: If it cannot be decoded, or is too large.
    """
    try:
        if simplejpeg.is_jpeg(data) and _EXIF_MARK not in data[:4096]:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ('CMYK', 'YCCK'):
                return _decode_jpeg(data, height, width, shrink_to)
        return _decode_other(data)
    except UndecodableImage:
        raise
    # Decoders raise all sorts of errors on broken files.
    except Exception as error:
        raise UndecodableImage(f'{type(error).__name__}: {error}') from error


def _decode_jpeg(data: bytes, height: int, width: int,
                 shrink_to: Optional[int]) -> np.ndarray:
    factor = 1
    if shrink_to is not None:
        while factor < 8 and min(height, width) // (2 * factor) >= shrink_to:
            factor *= 2
    _check_pixels(height // factor, width // factor)
    if factor == 1:
        return simplejpeg.decode_jpeg(data, 'BGR')
    # Rounded up, as libjpeg does.
    return simplejpeg.decode_jpeg(
        data, 'BGR', min_height=-(-height // factor),
        min_width=-(-width // factor), min_factor=factor)


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UndecodableImage(
            f'{width}x{height} pixels are more than {MAX_PIXELS:,}')


def _decode_other(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        _check_pixels(image.height, image.width)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I') or image.mode == 'F':
            array = np.asarray(image)
            if image.mode != 'F' and (array.max(initial=0) > 255):
                array = array >> 8
            image = Image.fromarray(array.clip(0, 255).astype(np.uint8))
        rgb = np.asarray(image.convert('RGB'))
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
