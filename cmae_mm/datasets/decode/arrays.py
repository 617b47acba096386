"""Bare arrays: the meaning of their axes, and files of ``np.save``."""
import io
import math
from typing import Optional

import numpy as np

from .raw_image import RawImage, UndecodableImage, UnfitImage, check_size
from .settings import MAX_CHANNELS, ImageSettings


def read_numpy(data: bytes, settings: ImageSettings) -> RawImage:
    """Read an array as an image; nothing in the file is executed.

    Args:
        data (bytes): The file, an array that :func:`arrange` takes.
        settings (ImageSettings): See :func:`arrange`.

    Returns:
        RawImage: The array.
    """
    pixels = arrange(np.load(io.BytesIO(data), allow_pickle=False), settings)
    height, width, channels = pixels.shape
    check_size(height, width, channels * pixels.itemsize)
    return RawImage(pixels)


def arrange(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Bring a bare array to (H, W, C).

    Two axes are rows and columns. Of three, the channels are the first or the
    last one, whichever has as many entries as channels are wanted.

    Args:
        pixels (np.ndarray): (H, W), (H, W, C) or (C, H, W).
        settings (ImageSettings): ``channels`` decides, unless ``bands``
            chooses some of them; without, the shorter axis does.

    Returns:
        np.ndarray: (H, W, C), a view.

    Raises:
        UndecodableImage: If it is no image.
        UnfitImage: If both axes have as many entries.
    """
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UndecodableImage(
            f'an array of shape {pixels.shape} is no image; needed are (H, W),'
            ' (H, W, C) or (C, H, W)')
    if pixels.ndim == 2:
        return pixels[..., None]
    first, last = pixels.shape[0], pixels.shape[2]
    wanted = settings.channels if settings.bands is None else None
    if wanted is not None and first == last == wanted:
        raise UnfitImage(
            f'is an array of shape {pixels.shape}, whose channels may be the '
            'first or the last axis; save it with another size')
    if min(first, last) > MAX_CHANNELS:
        raise UndecodableImage(
            f'an array of shape {pixels.shape} is no image of at most '
            f'{MAX_CHANNELS} channels')
    if first == wanted or (last != wanted and first < last):
        return pixels.transpose(1, 2, 0)
    return pixels


def arrange_pages(pixels: np.ndarray, axes: str, what: str,
                  pages: Optional[str]) -> np.ndarray:
    """Bring an array of named axes to (H, W, C).

    Args:
        pixels (np.ndarray): The array.
        axes (str): A letter for each axis: Y and X are rows and columns, S
            and C channels, all others pages.
        what (str): What pages are called: 'pages' or 'frames'.
        pages (str, optional): See :class:`ImageSettings`.

    Returns:
        np.ndarray: (H, W, C), a view where possible.

    Raises:
        UnfitImage: If there are several pages and ``pages`` is None.
    """
    kept = [n for n, axis in enumerate(axes)
            if axis in 'YX' or pixels.shape[n] > 1]
    pixels = pixels.reshape([pixels.shape[n] for n in kept])
    axes = ''.join(axes[n] for n in kept)
    others = [n for n, axis in enumerate(axes) if axis not in 'YXSC']
    if others and pages is None:
        refuse_pages(math.prod(pixels.shape[n] for n in others), what)
    if others and pages == 'first':
        pixels = pixels[tuple(0 if n in others else slice(None)
                              for n in range(len(axes)))]
        axes = ''.join(axis for axis in axes if axis in 'YXSC')
    rows, columns = axes.index('Y'), axes.index('X')
    rest = [n for n in range(len(axes)) if n not in (rows, columns)]
    pixels = pixels.transpose(rows, columns, *rest)
    return pixels.reshape(*pixels.shape[:2], -1)


def refuse_pages(count: int, what: str) -> None:
    """Refuse a file of several pages that are not declared as channels."""
    raise UnfitImage(
        f"has {count} {what}: set pages='channels' if they are the channels "
        "of one image, or pages='first' to read the first of them, or save "
        'each as a file of its own')
