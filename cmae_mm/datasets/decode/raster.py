"""Ordinary images, of 8 bits a channel: JPEG, PNG, BMP, WebP, TIFF and such.

JPEG files go through libjpeg-turbo, all others, and JPEG files in CMYK,
through Pillow.
"""
import io
from typing import Optional, Tuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from .raw_image import (
    RawImage,
    UndecodableImage,
    check_size,
    stand_upright,
)
from .sniffing import is_png

_EXIF_MARK = b'Exif\x00\x00'
_ORIENTATION = 0x0112
# Of which Pillow loses nothing where `is_plain` says that they are plain.
_FORMATS = ('JPEG', 'MPO', 'PNG', 'BMP', 'DIB', 'GIF', 'PPM', 'TIFF', 'WEBP')
# Of IHDR's colour types: grey and alpha.
_GREY_ALPHA, _GREY = 4, 0
ALPHA_MODES = ('LA', 'La', 'PA', 'RGBA', 'RGBa')


def decode_plain(data: bytes,
                 shrink_to: Optional[int] = None) -> Tuple[np.ndarray, bool]:
    """Decode a plain image to BGR, upright.

    Grey and palette images become colour; alpha is left out.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): See
            :func:`~cmae_mm.datasets.decode.decode_image`.

    Returns:
        Tuple[np.ndarray, bool]: uint8, (H, W, 3), not always contiguous; and
        whether there was an alpha channel.
    """
    if simplejpeg.is_jpeg(data):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ('CMYK', 'YCCK'):
            image = _decode_jpeg(data, 'BGR', height, width, shrink_to)
            return stand_upright(image, _orientation(data)), False
    opened = _open(data)
    alpha = _has_alpha(opened)
    if opened.mode != 'RGB':
        opened = opened.convert('RGB')
    # A view: crops of it are small, the whole need not be copied.
    return np.asarray(opened)[..., ::-1], alpha


def read_plain(data: bytes,
               channels: Optional[int] = None,
               shrink_to: Optional[int] = None) -> RawImage:
    """Read a plain image with the channels that it has, upright.

    Palettes become their colours. CMYK stays so where four channels are
    wanted, and becomes RGB otherwise.

    Args:
        data (bytes): The file.
        channels (int, optional): Number of channels that is wanted.
        shrink_to (int, optional): See :func:`decode_plain`.

    Returns:
        RawImage: uint8, of 1 to 4 channels.
    """
    if simplejpeg.is_jpeg(data):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ('CMYK', 'YCCK'):
            space = 'GRAY' if colours == 'Gray' else 'RGB'
            image = _decode_jpeg(data, space, height, width, shrink_to)
            return RawImage(stand_upright(image, _orientation(data)))
    opened = _open(data)
    alpha = _has_alpha(opened)
    if opened.mode in ('1', 'L', 'LA', 'La'):
        mode = 'LA' if alpha else 'L'
    elif opened.mode == 'CMYK' and channels == 4:
        mode = 'CMYK'
    else:
        mode = 'RGBA' if alpha else 'RGB'
    if opened.mode != mode:
        opened = opened.convert(mode)
    pixels = np.asarray(opened)
    return RawImage(pixels.reshape(*pixels.shape[:2], -1), alpha)


def has_alpha(data: bytes) -> bool:
    """Say whether a plain image has an alpha channel."""
    if simplejpeg.is_jpeg(data):
        return False
    try:
        with Image.open(io.BytesIO(data)) as file:  # reads the header alone
            return _has_alpha(file)
    # Broken: the decoder shall say how.
    except Exception:
        return False


def _open(data: bytes) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UndecodableImage('it is no image of a known format') from None
    with opened as file:
        if file.format not in _FORMATS:
            raise UndecodableImage(
                f'{file.format} files are not read; convert it to PNG or TIFF')
        check_size(file.height, file.width)
        image: Image.Image = ImageOps.exif_transpose(file)
    if image.mode[0] in 'IF':
        raise UndecodableImage(f'its mode {image.mode} is not of 8 bits')
    return image


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or 'transparency' in image.info


def _decode_jpeg(data: bytes, space: str, height: int, width: int,
                 shrink_to: Optional[int]) -> np.ndarray:
    factor = 1
    if shrink_to is not None:
        while factor < 8 and min(height, width) // (2 * factor) >= shrink_to:
            factor *= 2
    check_size(height // factor, width // factor)
    if factor == 1:
        return simplejpeg.decode_jpeg(data, space)
    # Rounded up, as libjpeg does.
    return simplejpeg.decode_jpeg(
        data, space, min_height=-(-height // factor),
        min_width=-(-width // factor), min_factor=factor)


def _orientation(data: bytes) -> int:
    """Read a JPEG file's EXIF orientation."""
    if _EXIF_MARK not in data[:4096]:
        return 1
    with Image.open(io.BytesIO(data)) as opened:  # reads the header alone
        return opened.getexif().get(_ORIENTATION, 1)


def read_deep_raster(data: bytes) -> RawImage:
    """Read a PNG or PNM file of 16 bits a channel.

    Returns:
        RawImage: uint16, of 1 to 4 channels.
    """
    with Image.open(io.BytesIO(data)) as file:  # reads the header alone
        check_size(file.height, file.width, 8)
        orientation = file.getexif().get(_ORIENTATION, 1)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise UndecodableImage('OpenCV cannot decode it')
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    channels = pixels.shape[2]
    if is_png(data) and data[25] in (_GREY, _GREY_ALPHA) and channels > 1:
        # OpenCV repeats grey beside alpha.
        pixels = pixels[..., [0, -1]]
    elif channels >= 3:
        pixels = pixels[..., [2, 1, 0, 3][:channels]]
    return RawImage(
        stand_upright(pixels, orientation), alpha=pixels.shape[2] in (2, 4))
