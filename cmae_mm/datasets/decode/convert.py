"""Conversion of images and bare arrays to the settings."""
import io
import math
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .image import (MAX_CHANNELS, ImageSettings, RawImage, UndecodableImage,
                    UnfitImage, check_size)

# Upper end of the range of each type.
_HIGHEST = {'uint8': 255, 'uint16': 65535, 'float32': 1}
# Largest change of a value by rounding float64, relative to the range of the
# image.
_ROUNDING = 2.**-16


def convert(raw: RawImage, name: str, settings: ImageSettings) -> np.ndarray:
    """Convert an image to the channels and the type of the settings.

    Args:
        raw (RawImage): The image as its file stores it.
        name (str): The file's name, for errors.
        settings (ImageSettings): The settings.

    Returns:
        np.ndarray: (H, W, C), channels in the file's order (red, green, blue
        for colours).

    Raises:
        UnfitImage: If the conversion would lose something.
        UndecodableImage: If all pixels are missing.
    """
    return change_type(prepare(raw, name, settings)[0], name, settings)


def prepare(raw: RawImage, name: str, settings: ImageSettings
            ) -> tuple[RawImage, np.ndarray | None]:
    """Choose the channels and fill missing pixels; return their mask, too."""
    raw = choose_channels(raw, name, settings)
    missing = find_missing(raw)
    if missing is not None:
        if settings.fill is None:
            raise UnfitImage(
                f'{name} has missing pixels ({100 * missing.mean():.3g}%; '
                "NaN, or what the file declares as nodata); set fill='mean', "
                'or a number that replaces them')
        raw = raw._replace(
            pixels=fill_missing(raw.pixels, missing, settings.fill))
    return raw, missing


def natural_dtype(dtype: Any) -> str:
    """Return the narrowest supported dtype for a file's dtype.

    Integers of 32 or 64 bits fit into float32 if they are below 16,777,216,
    which :func:`change_type` checks.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in 'bu' and dtype.itemsize <= 2:
        return 'uint16' if dtype.itemsize == 2 else 'uint8'
    return 'float32'


def _usable_dtype(dtype: Any) -> str:
    """Return :func:`natural_dtype`, or float32 if torch has no uint16."""
    natural = natural_dtype(dtype)
    if natural == 'uint16' and not hasattr(torch, 'uint16'):
        return 'float32'
    return natural


def choose_channels(raw: RawImage, name: str,
                    settings: ImageSettings) -> RawImage:
    """Choose or check the channels of an image.

    Raises:
        UnfitImage: If its channels differ from the settings.
        UndecodableImage: If its values are not real numbers.
    """
    pixels, missing = raw.pixels, raw.missing
    if pixels.dtype.kind not in 'buif':
        raise UndecodableImage(f'its values are of the type {pixels.dtype}')
    found, wanted = pixels.shape[2], settings.channels
    colours = found - raw.alpha
    chosen: Any
    if settings.bands is not None:
        chosen = list(settings.bands)
        if max(chosen) >= found:
            raise UnfitImage(
                f'{name} has {found} channel(s), numbered from 0, but bands='
                f'{settings.bands} asks for number {max(chosen)}')
    elif wanted in (None, found):
        return raw
    elif colours == wanted:
        chosen = slice(0, wanted)
    elif wanted == 3 and colours == 1:
        chosen = [0, 0, 0]
    elif wanted == 1 and colours == 3 and is_grey(pixels):
        chosen = slice(0, 1)
    else:
        choice = (f', or bands=(...) to choose {wanted} of them'
                  if found > wanted else '')
        raise UnfitImage(
            f'{name} has {found} channel(s) of {pixels.dtype}, but channels='
            f'{wanted}; set channels={found}{choice} (`cmae stats` finds what '
            'fits all images)')
    if missing is not None and missing.shape[2] > 1:
        missing = missing[..., chosen]
    return raw._replace(
        pixels=pixels[..., chosen], missing=missing, alpha=False)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether red, green and blue are equal in all pixels."""
    return bool((pixels[..., 1:3] == pixels[..., :1]).all())


def find_missing(raw: RawImage) -> np.ndarray | None:
    """Find missing pixels.

    Returns:
        np.ndarray | None: bool, of the pixels' shape; None if there are none.
    """
    missing = raw.missing
    if raw.pixels.dtype.kind == 'f':
        finite = np.isfinite(raw.pixels)
        if not finite.all():
            missing = ~finite if missing is None else missing | ~finite
    if missing is None or not missing.any():
        return None
    return np.broadcast_to(missing, raw.pixels.shape)


def fill_missing(pixels: np.ndarray, missing: np.ndarray,
                 fill: float | str) -> np.ndarray:
    """Replace missing pixels.

    Args:
        pixels (np.ndarray): (H, W, C).
        missing (np.ndarray): bool, of the same shape.
        fill (float | str): A number, or 'mean' of the valid pixels of the
            channel; of all channels if a channel has none.

    Returns:
        np.ndarray: Of the same type, unless that cannot hold the number.

    Raises:
        UndecodableImage: If all pixels are missing and ``fill`` is 'mean'.
    """
    if not isinstance(fill, str):
        value: Any = np.asarray(fill, np.float64)
        if (value.astype(pixels.dtype) == value).all():  # keeps the type
            value = value.astype(pixels.dtype)
        return np.where(missing, value, pixels)
    means = mean_of(*sum_valid(pixels, missing), pixels.dtype)
    return np.where(missing, means, pixels).astype(pixels.dtype)


def sum_valid(pixels: np.ndarray,
              missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and number of the valid pixels of each channel."""
    return (np.where(missing, 0, pixels).sum(axis=(0, 1), dtype=np.float64),
            (~missing).sum(axis=(0, 1)))


def mean_of(sums: np.ndarray, counts: np.ndarray, dtype: Any) -> np.ndarray:
    """Return means of channels; of all channels if a channel is empty."""
    if not counts.any():
        raise UndecodableImage('all of its pixels are missing')
    means = np.where(counts > 0, sums / counts.clip(1),
                     sums.sum() / counts.sum())
    return np.rint(means) if dtype.kind != 'f' else means


def change_type(raw: RawImage, name: str,
                settings: ImageSettings) -> np.ndarray:
    """Convert values to the dtype of the settings.

    Raises:
        UnfitImage: If the type cannot hold them.
    """
    pixels = raw.pixels
    dtype = settings.dtype or _usable_dtype(pixels.dtype)
    if raw.is_unit_range:
        return _round(pixels * _HIGHEST[dtype], dtype)
    if settings.value_range is not None:
        return _scale(pixels, dtype, settings.value_range)
    if np.can_cast(pixels.dtype, dtype, 'safe'):
        return pixels.astype(dtype, copy=False)
    # As Python numbers: float16 cannot be compared with 65535.
    low, high = pixels.min().item(), pixels.max().item()
    if dtype == 'float32':
        narrow = pixels.astype(np.float32)
        worst = np.abs(narrow.astype(np.float64) - pixels).max()
        if pixels.dtype.kind == 'f' and worst <= _ROUNDING * (high - low) or (
                worst == 0):
            return narrow
        raise UnfitImage(
            f'{name} has values from {low} to {high} of {pixels.dtype}, whose '
            "differences are lost in dtype='float32'; set value_range=(low, "
            'high) to the relevant range')
    if pixels.dtype.kind != 'f' or (pixels == np.rint(pixels)).all():
        if low >= 0 and high <= _HIGHEST[dtype]:
            return pixels.astype(dtype)
        # 8 bits that were widened to 16.
        for factor in (257, 256) if (
                pixels.dtype, dtype) == ('uint16', 'uint8') else ():
            if not (pixels % factor).any():
                return (pixels // factor).astype(dtype)
    raise UnfitImage(
        f'{name} has values from {low:g} to {high:g} of {pixels.dtype}, which '
        f'dtype={dtype!r} cannot hold; set dtype='
        f'{_usable_dtype(pixels.dtype)!r}, or value_range=(low, high), which '
        'are mapped to the ends of the type (`cmae stats` finds both, and its '
        '--out writes them)')


def _scale(pixels: np.ndarray, dtype: str, value_range: Any) -> np.ndarray:
    """Map a range of values to the range of a type, and clip."""
    if value_range == 'per_image':
        value_range = pixels.min(), pixels.max()
    if np.array_equal(*value_range):
        return np.zeros(pixels.shape, dtype)
    low, high = (np.array(end, np.float64) for end in value_range)
    values = pixels.astype(np.float64)
    values -= low
    values *= _HIGHEST[dtype] / (high - low)
    return _round(values.clip(0, _HIGHEST[dtype]), dtype)


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != 'float32':
        values = np.rint(values)
    return values.astype(dtype)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize with anti-aliased bicubic interpolation, like Pillow.

    Args:
        image (np.ndarray): (H, W, C), uint8, uint16 or float32.
        size (tuple[int, int]): Height and width wanted, in pixels.

    Returns:
        np.ndarray: Image of this size and the same dtype; integers are rounded
        and clipped to their range. A view of contiguous channels, for
        ``PackInputs``.
    """
    return _to_image(_interpolate(_to_tensor(image), size), image)


def resize_rows(blocks: Iterable[np.ndarray],
                size: tuple[int, int]) -> np.ndarray:
    """Resize an image given in blocks of rows, see :func:`resize_image`.

    The pixels are those of the whole image: columns are resized before rows.

    Args:
        blocks (Iterable[np.ndarray]): Blocks, (h, W, C), from top to bottom.
        size (tuple[int, int]): Height and width wanted, in pixels.

    Returns:
        np.ndarray: Of that size, and the blocks' type.
    """
    narrow = []
    for block in blocks:
        narrow.append(_interpolate(
            _to_tensor(block), (len(block), size[1])))
        like = block[:1]
    return _to_image(_interpolate(torch.cat(narrow, 2), size), like)


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert to (1, C, H, W) in channels-last order, which is faster.

    Of uint8, or float32. BGR as a view of RGB is turned back.
    """
    image = np.ascontiguousarray(
        image[..., ::-1] if image.strides[2] < 0 else image)
    if not image.flags.writeable:  # like those of Pillow
        image = image.copy()
    if image.dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def _to_image(tensor: torch.Tensor, like: np.ndarray) -> np.ndarray:
    made = tensor[0].permute(1, 2, 0).numpy()
    if made.dtype != like.dtype:
        # The filter overshoots at edges.
        made = np.rint(made).clip(0, np.iinfo(like.dtype).max).astype(
            like.dtype)
    return made[..., ::-1] if like.strides[2] < 0 else made


def _interpolate(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image, size, mode='bicubic', antialias=True)


def read_numpy(data: bytes, settings: ImageSettings) -> RawImage:
    """Read an array as an image; nothing in the file is executed.

    Args:
        data (bytes): The file of ``np.save``, or of ``np.savez`` with one
            array or one that is called 'image'.
        settings (ImageSettings): See :func:`to_hwc`.

    Returns:
        RawImage: The array.
    """
    stored: Any = io.BytesIO(data)
    if not data.startswith(b'\x93NUMPY'):
        archive = zipfile.ZipFile(stored)
        names = [name for name in archive.namelist() if name.endswith('.npy')]
        if len(names) > 1 and 'image.npy' in names:
            names = ['image.npy']
        if len(names) != 1:
            raise UndecodableImage(
                f'it has {len(names)} arrays ({", ".join(names)[:200]}), but '
                'must have one array, or one named image')
        # Before allocation: a small file may contain a large array.
        check_size(settings, 1, 1, archive.getinfo(names[0]).file_size)
        stored = archive.open(names[0])
    pixels = to_hwc(np.lib.format.read_array(stored, allow_pickle=False),
                    settings)
    height, width, channels = pixels.shape
    check_size(settings, height, width, channels * pixels.itemsize)
    return RawImage(pixels)


def to_hwc(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Convert a bare array to (H, W, C).

    Two axes are rows and columns. Of three axes, the first or last with the
    wanted number of channels is the channel axis.

    Args:
        pixels (np.ndarray): (H, W), (H, W, C) or (C, H, W), or a stack of N
            images, (N, H, W, C) or (N, C, H, W).
        settings (ImageSettings): ``channels`` selects the axis unless
            ``bands`` is set; without it, the shorter axis is used.

    Returns:
        np.ndarray: (H, W, C), a view.

    Raises:
        UndecodableImage: If it is not an image.
        UnfitImage: If both axes have this number of entries, or it is a stack
            and ``pages`` is None.
    """
    if pixels.ndim == 4 and 0 not in pixels.shape:
        if len(pixels) > 1 and settings.pages is None:
            refuse_pages(len(pixels), 'images in a stack')
        count = 1 if settings.pages == 'first' else len(pixels)
        return np.concatenate(
            [to_hwc(image, settings) for image in pixels[:count]], axis=2)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UndecodableImage(
            f'an array of shape {pixels.shape} is not an image; use (H, W), '
            '(H, W, C) or (C, H, W)')
    if pixels.ndim == 2:
        return pixels[..., None]
    first, last = pixels.shape[0], pixels.shape[2]
    wanted = settings.channels if settings.bands is None else None
    if wanted is not None and first == last == wanted:
        raise UnfitImage(
            f'is an array of shape {pixels.shape}, so the channel axis is '
            'ambiguous; save it with another size')
    if min(first, last) > MAX_CHANNELS:
        raise UndecodableImage(
            f'an array of shape {pixels.shape} is not an image with at most '
            f'{MAX_CHANNELS} channels; save each image of a stack as a '
            'separate file')
    if first == wanted or (last != wanted and first < last):
        return pixels.transpose(1, 2, 0)
    return pixels


def pages_to_hwc(pixels: np.ndarray, axes: str, what: str,
                 pages: str | None) -> np.ndarray:
    """Convert an array with named axes to (H, W, C).

    Args:
        pixels (np.ndarray): The array.
        axes (str): A letter for each axis: Y and X are rows and columns, S
            and C channels, all others pages.
        what (str): Name of the pages: 'pages' or 'frames'.
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
    """Reject a file with several pages that are not declared as channels."""
    raise UnfitImage(
        f"has {count} {what}: set pages='channels' if they are the channels "
        "of one image, or pages='first' to read the first of them, or save "
        'each as a separate file')
