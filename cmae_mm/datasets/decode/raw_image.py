"""An image as its file stores it, and the errors of decoding."""
from typing import NamedTuple, Optional

import numpy as np

# Larger images are refused unless they can be decoded at a smaller scale.
# Pillow needs over 10 bytes a pixel; a worker must stay below 400 MB.
MAX_PIXELS = 25_000_000
MAX_BYTES = 16 * MAX_PIXELS


class UndecodableImage(ValueError):
    """A broken file, or one of a kind that is not read."""


class UnfitImage(ValueError):
    """A valid image that does not fit the settings; names the file.

    Training stops: a setting must change. Broken files are skipped instead.
    """


class RawImage(NamedTuple):
    """An image as its file stores it, upright.

    Args:
        pixels (np.ndarray): (H, W, C), of the file's type; colours are in the
            order red, green, blue.
        alpha (bool): Whether the last channel is opacity. Defaults to False.
        missing (np.ndarray, optional): Which pixels hold no value, bool,
            (H, W, 1) or (H, W, C). Defaults to None.
        is_share (bool): Whether values are shares of a window, from 0 to 1.
            Defaults to False.
        is_animated (bool): Whether it is the first of several frames.
            Defaults to False.
    """

    pixels: np.ndarray
    alpha: bool = False
    missing: Optional[np.ndarray] = None
    is_share: bool = False
    is_animated: bool = False


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
        orientation (int): 2 to 8; all other values are upright.
    """
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
