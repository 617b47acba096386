"""An image as it is in its file, and why a file gives none."""
from typing import NamedTuple, Optional

import numpy as np

# Above this an image that cannot be decoded at a smaller scale is refused.
# Pillow takes over 10 bytes a pixel, and a worker shall stay below 400 MB.
MAX_PIXELS = 25_000_000
MAX_BYTES = 16 * MAX_PIXELS


class UndecodableImage(ValueError):
    """Bytes that are no image, or not one that can be used."""


class UnfitImage(ValueError):
    """An image that would lose something by the settings; names the file.

    Not a broken file: a setting is to be changed, so that it is not skipped.
    """


class RawImage(NamedTuple):
    """An image as it is in its file.

    Args:
        pixels (np.ndarray): (H, W, C), of the file's type; colours are in the
            order red, green, blue.
        alpha (bool): Whether the last channel is opacity. Defaults to False.
        missing (np.ndarray, optional): Which pixels hold no value, bool,
            (H, W, 1) or (H, W, C). Defaults to None.
        is_share (bool): Whether values are shares from 0 to 1 of what a
            window shows. Defaults to False.
    """

    pixels: np.ndarray
    alpha: bool = False
    missing: Optional[np.ndarray] = None
    is_share: bool = False


def check_size(height: int, width: int, bytes_per_pixel: int = 1) -> None:
    """Check that an image fits into the memory of a worker.

    Raises:
        UndecodableImage: If it does not.
    """
    if height * width > MAX_PIXELS:
        raise UndecodableImage(
            f'{width}x{height} pixels are more than {MAX_PIXELS:,}; cut it '
            'into tiles')
    if height * width * bytes_per_pixel > MAX_BYTES:
        raise UndecodableImage(
            f'{width}x{height} pixels of {bytes_per_pixel} bytes are more '
            f'than {MAX_BYTES:,} bytes; cut it into tiles')


def stand_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation of EXIF or TIFF, as a view.

    Args:
        image (np.ndarray): (H, W, C).
        orientation (int): From 1, upright, to 8.
    """
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
