"""Smaller copies of images that keep their type and channels."""
import io
from typing import Optional, Tuple

import cv2
import numpy as np
import simplejpeg
import tifffile
from mmengine.logging import print_log

from .decode import (
    ImageSettings,
    RawImage,
    UndecodableImage,
    UnfitImage,
    decode_image,
    has_alpha,
    is_dicom,
    is_plain,
    read_image,
    resize_image,
)
from .image_stats import IMAGE_DTYPES

# All that a file holds.
_WHOLE = ImageSettings(channels=None, dtype=None)


class ShrinkError(ValueError):
    """An image whose smaller copy would lose something; names the file."""


def shrink(data: bytes, short_side: Optional[int], name: str) -> bytes:
    """Re-encode an image whose shorter side is longer than wanted.

    What is small enough, or cannot be decoded, is kept as it is. Images of
    more than 8 bits, of other channels than grey or colour, or with alpha
    keep all of these.

    Args:
        data (bytes): The file.
        short_side (int, optional): Length in pixels that the shorter side of
            larger images is reduced to; None keeps all as they are.
        name (str): Name of the image, for the warning.

    Returns:
        bytes: The data themselves, or a JPEG of quality 92, or a TIFF file of
        the image's type and channels.

    Raises:
        ShrinkError: If the image would lose what its file says about it, or
            has several pages.
        MissingLibrary: If an optional library is needed; names the file.
    """
    if short_side is None:
        return data
    try:
        if is_plain(data, name) and not has_alpha(data):
            return _shrink_plain(data, short_side)
        return _shrink_any(data, short_side, name)
    except UnfitImage as error:
        raise ShrinkError(str(error)) from error
    except UndecodableImage as error:
        print_log(f'{name} cannot be decoded ({error}) and is stored as it '
                  'is; training will skip it.', logger='current', level=30)
        return data


def _shrink_plain(data: bytes, short_side: int) -> bytes:
    image = decode_image(data)
    size = _smaller(image, short_side)
    if size is None:
        return data
    image = cv2.resize(np.ascontiguousarray(image), size[::-1],
                       interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(image, quality=92, colorspace='BGR')


def _shrink_any(data: bytes, short_side: int, name: str) -> bytes:
    raw = read_image(data, name, _WHOLE)
    size = _smaller(raw.pixels, short_side)
    if size is None:
        return data
    if is_dicom(data, name) or not _is_kept(raw):
        what = 'a DICOM file' if is_dicom(data, name) else (
            f'an image of {raw.pixels.dtype}')
        raise ShrinkError(
            f'{name} is {what} with more than a smaller copy would keep '
            '(units, missing pixels, other types than '
            f'{", ".join(IMAGE_DTYPES)}); leave --short-side out, and it is '
            'stored as it is')
    return _encode(resize_image(raw.pixels, size), raw.alpha)


def _is_kept(raw: RawImage) -> bool:
    """Say whether pixels are all that there is, of a type that is kept."""
    return (raw.missing is None and raw.pixels.dtype.name in IMAGE_DTYPES
            and bool(np.isfinite(raw.pixels).all()))


def _encode(pixels: np.ndarray, alpha: bool) -> bytes:
    channels = pixels.shape[2]
    extra = (channels - 1) * ['unspecified']
    colours = 'minisblack'
    if alpha:
        extra = ['unassalpha']
        colours = 'rgb' if channels == 4 else 'minisblack'
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        np.ascontiguousarray(pixels if channels > 1 else pixels[..., 0]),
        photometric=colours,
        planarconfig='contig' if channels > 1 else None,
        extrasamples=extra or None,
        metadata=None,
        compression='zlib')
    return file.getvalue()


def short_side_of(data: bytes, name: str) -> int:
    """Give the length of an image's shorter side, in pixels."""
    return min(read_image(data, name, _WHOLE).pixels.shape[:2])


def _smaller(image: np.ndarray,
             short_side: int) -> Optional[Tuple[int, int]]:
    """Give the size to reduce an image to, None if it is small enough."""
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return None
    return (max(round(height * scale), short_side),
            max(round(width * scale), short_side))
