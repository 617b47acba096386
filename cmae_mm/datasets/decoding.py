"""Decoding image files of all sorts to RGB-like uint8 arrays."""
import io
from typing import Optional

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# Above this an image that cannot be decoded at a smaller scale is refused.
# Pillow takes over 10 bytes a pixel, and a worker shall stay below 400 MB.
MAX_PIXELS = 25_000_000
_EXIF_MARK = b'Exif\x00\x00'
_ORIENTATION = 0x0112


class UndecodableImage(ValueError):
    """Bytes that are no image, or not one that can be used."""


def decode_image(data: bytes, shrink_to: Optional[int] = None) -> np.ndarray:
    """Decode an image to BGR, upright.

    JPEG files go through libjpeg-turbo. All others, and JPEG files in CMYK,
    go through Pillow: grey and palette images become colour, 16-bit ones
    8-bit, and alpha is dropped. EXIF orientations are applied.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): The caller needs no more than this on the
            shorter side, in pixels: JPEG files are then decoded at 1/2, 1/4
            or 1/8 where that leaves enough. Defaults to None, full size.

    Returns:
        np.ndarray: uint8, (H, W, 3), BGR; not always contiguous.

    Raises:
        UndecodableImage: If it cannot be decoded, or is too large.
    """
    try:
        if simplejpeg.is_jpeg(data):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ('CMYK', 'YCCK'):
                image = _decode_jpeg(data, height, width, shrink_to)
                return _stand_upright(image, data)
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


def _stand_upright(image: np.ndarray, data: bytes) -> np.ndarray:
    """Apply a JPEG file's EXIF orientation, as a view."""
    if _EXIF_MARK not in data[:4096]:
        return image
    with Image.open(io.BytesIO(data)) as opened:  # reads the header alone
        orientation = opened.getexif().get(_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UndecodableImage(
            f'{width}x{height} pixels are more than {MAX_PIXELS:,}')


def _decode_other(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as file:
        _check_pixels(file.height, file.width)
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode.startswith('I') or image.mode == 'F':
            array = np.asarray(image)
            if image.mode != 'F' and (array.max(initial=0) > 255):
                array = array >> 8
            image = Image.fromarray(array.clip(0, 255).astype(np.uint8))
        if image.mode != 'RGB':
            image = image.convert('RGB')
        # A view: crops of it are small, the whole need not be copied.
        return np.asarray(image)[..., ::-1]
