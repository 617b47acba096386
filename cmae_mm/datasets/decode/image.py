"""Decoded images before conversion, and the settings of decoding."""
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import print_log

IMAGE_DTYPES = ('uint8', 'uint16', 'float32')
MAX_CHANNELS = 64
# Pillow needs over 10 bytes a pixel; a worker must stay below 400 MB.
MAX_PIXELS = 25_000_000
# Largest number of bytes per pixel of the limit.
_BYTES_PER_PIXEL = 16
# Width, height and maximum of a PNM file, followed by one blank.
PNM_HEADER = re.compile(rb'P([2356])' + rb'(?:\s+|#[^\n]*\n)+(\d+)' * 3
                        + rb'\s')

ValueRange = None | str | Sequence[Any]
# A file's content, or the path of a large one.
Encoded = bytes | Path
# First row and column, height and width, in pixels.
Window = tuple[int, int, int, int]
_logged: set[str] = set()


class UndecodableImage(ValueError):
    """A broken file, or one of an unsupported kind."""


class TooLargeImage(UndecodableImage):
    """An image of more pixels than ``max_pixels``.

    Attributes:
        pixels (int): Smallest ``max_pixels`` that accepts it.
        size (tuple[int, int]): Height and width in pixels.
    """

    pixels, size = 0, (0, 0)


class UnfitImage(ValueError):
    """A valid image that does not fit the settings; names the file.

    Stops training, because a setting must change. Broken files are skipped.
    """


def log_once(subject: str, text: str) -> None:
    """Log a warning once per subject and process."""
    if subject not in _logged:
        _logged.add(subject)
        if get_rank() == 0:
            print_log(text, logger='current', level=logging.WARNING)


class RawImage(NamedTuple):
    """An image as stored in its file, after rotation.

    Args:
        pixels (np.ndarray): (H, W, C), of the file's type; colours are in the
            order red, green, blue.
        alpha (bool): Whether the last channel is opacity. Defaults to False.
        missing (np.ndarray, optional): Mask of missing pixels, bool,
            (H, W, 1) or (H, W, C). Defaults to None.
        is_unit_range (bool): Whether values are relative to a window, from 0
            to 1. Defaults to False.
        is_animated (bool): Whether it is the first of several frames.
            Defaults to False.
    """

    pixels: np.ndarray
    alpha: bool = False
    missing: np.ndarray | None = None
    is_unit_range: bool = False
    is_animated: bool = False


def join(found: Sequence[RawImage], axis: int) -> RawImage:
    """Join parts of an image along an axis."""
    if len(found) == 1:
        return found[0]
    masks: Any = [raw.missing for raw in found]
    return found[-1]._replace(
        pixels=np.concatenate([raw.pixels for raw in found], axis),
        missing=None if masks[0] is None else np.concatenate(masks, axis))


class Parts(NamedTuple):
    """An image whose parts can be read one by one.

    Args:
        levels (list[tuple[int, int]]): Height and width of the image, and of
            its overviews from large to small, in pixels.
        read (Callable): Function from a level and a window to a RawImage.
        rows (int): Height of a block, the smallest unit that can be read.
        columns (int): Width of a block.
        has_missing (bool): Whether pixels may be missing.
        is_map (bool): Whether the last channel is alpha or data depending on
            its values, and the settings depend on that.
        is_large (bool): Whether it has more than ``max_pixels``.
        orientation (int): How the stored image is turned, see
            :func:`apply_orientation`.
        pixel_bytes (int): Number of bytes of a pixel with all its channels.
    """

    levels: list[tuple[int, int]]
    read: Callable[[int, Window], RawImage]
    rows: int
    columns: int
    has_missing: bool = False
    is_map: bool = False
    is_large: bool = False
    orientation: int = 1
    pixel_bytes: int = 1


def count_pixels(height: int, width: int, bytes_per_pixel: int = 1) -> int:
    """Count pixels; those with many bytes count as several."""
    return height * width * max(bytes_per_pixel, _BYTES_PER_PIXEL) // (
        _BYTES_PER_PIXEL)


def check_size(settings: 'ImageSettings', height: int, width: int,
               bytes_per_pixel: int = 1) -> None:
    """Check that an image fits into the memory of a worker.

    Raises:
        TooLargeImage: If it does not.
    """
    pixels = count_pixels(height, width, bytes_per_pixel)
    if pixels <= settings.max_pixels:
        return
    size = f' of {bytes_per_pixel} bytes' if pixels > height * width else ''
    error = TooLargeImage(
        f'{width}x{height} pixels{size} are more than '
        f'max_pixels={settings.max_pixels:,}; set max_pixels={pixels} '
        '(--max-pixels of `cmae stats`, `store` and `shards`), or write it as '
        'a tiled TIFF file, of which parts are read (by `cmae predict` with '
        '--window)')
    error.pixels, error.size = pixels, (height, width)
    raise error


def apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation of EXIF or TIFF, as a view.

    Args:
        image (np.ndarray): (H, W, C).
        orientation (int): 2 to 8; all other values mean upright.
    """
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def stored_window(window: Window, size: tuple[int, int],
                  orientation: int) -> Window:
    """Return where a window of an upright image is in the stored one.

    Args:
        window (tuple[int, int, int, int]): The window, in the upright image.
        size (tuple[int, int]): Height and width of the upright image.
        orientation (int): See :func:`apply_orientation`.
    """
    y, x, height, width = window
    if orientation in (3, 4, 7, 8):
        y = size[0] - y - height
    if orientation in (2, 3, 6, 7):
        x = size[1] - x - width
    return (x, y, width, height) if orientation in (5, 6, 7, 8) else (
        y, x, height, width)


def read_file_content(data: Encoded) -> bytes:
    """Return the content of a file."""
    return data.read_bytes() if isinstance(data, Path) else data


def first_bytes(data: Encoded, count: int = 1000) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(data, Path):
        with data.open('rb') as file:
            return file.read(count)
    return data[:count]


def is_jpeg(data: bytes) -> bool:
    """Return whether a file is JPEG."""
    return data[:3] == b'\xff\xd8\xff'


def is_tiff(data: bytes) -> bool:
    """Return whether a file is TIFF or BigTIFF."""
    return data[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def is_jp2(data: bytes) -> bool:
    """Return whether a file is JPEG 2000, with or without its container."""
    return data[:4] == b'\xff\x4f\xff\x51' or data[4:12] == b'jP  \r\n\x87\n'


def is_numpy(data: bytes) -> bool:
    """Return whether a file is of ``np.save`` or ``np.savez``."""
    return data[:6] == b'\x93NUMPY' or (
        data[:4] == b'PK\3\4' and b'.npy' in data[30:300])


def is_dicom(data: bytes, name: str = '') -> bool:
    """Return whether a file is DICOM, by its mark, or its name and start."""
    return data[128:132] == b'DICM' or data[:2] in (
        b'\2\0', b'\x08\0') and name.lower().rstrip('"').endswith(
            ('.dcm', '.dicom'))


def is_deep_png(data: bytes) -> bool:
    """Return whether a file is PNG of 16 bits a channel."""
    return data[:8] == b'\x89PNG\r\n\x1a\n' and data[24:25] > b'\x08'


def is_deep_pnm(data: bytes) -> bool:
    """Return whether a file is PNM of more than 8 bits a channel."""
    match = PNM_HEADER.match(data[:1000])
    return match is not None and int(match[4]) > 255


class ImageSettings(NamedTuple):
    """How an image is decoded.

    Decoding is lossless unless a setting allows a loss. An image that does not
    fit raises an error with its name and the setting that accepts it.

    Args:
        channels (int, optional): Number C of channels, from 1 to 64; None
            keeps those of the file. Defaults to 3.
        dtype (str, optional): 'uint8', 'uint16' or 'float32'; None selects the
            narrowest of these for the file's type. Defaults to 'uint8'.
        value_range (Sequence | str, optional): ``(low, high)``, mapped to the
            range of the type (0 to 255, 0 to 65535, 0. to 1.); values outside
            are clipped. Each is one number or C numbers. 'per_image' uses the
            range of each image. Defaults to None, values are unchanged.
        bands (Sequence[int], optional): The C channels to read, numbered from
            0 in the file's order. Defaults to None, all.
        fill (float | str, optional): Value of missing pixels (NaN, the file's
            nodata value or mask, DICOM's padding), in the file's units, or
            'mean' of the channel's other pixels. Defaults to None, images with
            missing pixels raise an error.
        window (Sequence[float] | str, optional): ``(centre, width)`` of the
            window applied to DICOM values; 'file' applies the window of each
            file. Defaults to None, values are unchanged.
        pages (str, optional): Meaning of the pages of a TIFF file, the frames
            of a DICOM file or the images of a stack: 'channels' of one image,
            or separate images, of which the 'first' is used. Defaults to None,
            files with several pages raise an error unless they declare them as
            channels.
        max_pixels (int): Largest number of pixels to decode at once. Larger
            images raise an error, unless a part or a smaller scale can be
            decoded. Defaults to 25 million.
    """

    channels: int | None = 3
    dtype: str | None = 'uint8'
    value_range: ValueRange = None
    bands: Sequence[int] | None = None
    fill: Any = None
    window: None | str | Sequence[float] = None
    pages: str | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def is_bgr(self) -> bool:
        """Whether images are in BGR, the order of mmcv."""
        return self.channels == 3 and self.dtype == 'uint8'


RGB = ImageSettings()


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether images are 8-bit colours without further settings."""
    rest = {k: v for k, v in settings.items() if v is not None}
    return (rest.pop('channels', 3), rest.pop('dtype', 'uint8'), rest) == (
        3, 'uint8', {})


def is_colour(settings: Mapping[str, Any]) -> bool:
    """Whether images are 8-bit colours, of any number of pixels."""
    return is_plain({**settings, 'max_pixels': None})


def make_settings(**given: Any) -> ImageSettings:
    """Validate settings and convert sequences to tuples.

    Args:
        **given: Fields of :class:`ImageSettings`.

    Raises:
        ValueError: If a value is not allowed, or two contradict each other.
    """
    settings = ImageSettings(**given)
    if settings.max_pixels is None:
        settings = settings._replace(max_pixels=MAX_PIXELS)
    channels, bands = settings.channels, settings.bands
    if not _is_whole(settings.max_pixels) or settings.max_pixels < 1:
        _refuse('max_pixels', settings.max_pixels, 'a whole number from 1')
    if channels is not None and not (_is_whole(channels)
                                     and 1 <= channels <= MAX_CHANNELS):
        _refuse('channels', channels,
                f'a whole number from 1 to {MAX_CHANNELS}')
    for name, allowed in (('dtype', (*IMAGE_DTYPES, None)),
                          ('pages', ('channels', 'first', None))):
        if getattr(settings, name) not in allowed:
            _refuse(name, getattr(settings, name),
                    f'one of {", ".join(allowed[:-1])}')
    if settings.dtype == 'uint16' and not hasattr(torch, 'uint16'):
        raise ValueError(f"dtype='uint16' needs torch 2.3 or newer, but "
                         f"{torch.__version__} is installed; set "
                         "dtype='float32', which holds the same values")
    if bands is not None:
        found = _numbers(bands)
        if not found or not all(_is_whole(b) and b >= 0 for b in found):
            _refuse('bands', bands, 'numbers of channels, from 0')
        if channels is not None and len(found) != channels:
            raise ValueError(f'bands={found} has {len(found)} entries, but '
                             f'channels={channels}; set both to the same '
                             'number')
        bands = found
    if settings.fill not in (None, 'mean') and not _is_number(settings.fill):
        _refuse('fill', settings.fill, "a number or 'mean'")
    window = settings.window
    if window not in (None, 'file'):
        window = _numbers(window)
        if window is None or len(window) != 2 or window[1] <= 0:
            _refuse('window', settings.window, "(centre, width) or 'file'")
    value_range = _check_range(settings.value_range, channels)
    if window is not None and value_range is not None:
        raise ValueError('window and value_range both select a range of '
                         'values; set one of them')
    return settings._replace(
        bands=bands, window=window, value_range=value_range)


def _check_range(value_range: Any, channels: int | None) -> ValueRange:
    if value_range in (None, 'per_image'):
        return value_range
    pair = value_range if isinstance(value_range, (list, tuple)) else ()
    ends = [_numbers([end] if _is_number(end) else end) or () for end in pair]
    count = max(map(len, ends), default=0)
    full = tuple(end * count if len(end) == 1 else end for end in ends)
    if (len(full) != 2 or any(len(end) != count for end in full)
            or (count > 1 and channels not in (None, count))
            or any(low >= high for low, high in zip(*full))):
        _refuse('value_range', value_range,
                'two finite numbers, the lower one first, each one number or '
                f'one for each of {channels or "the"} channels, or '
                "'per_image'")
    return full


def _refuse(name: str, value: Any, rule: str) -> NoReturn:
    raise ValueError(f'{name} must be {rule}, but got {value!r}')


def _numbers(values: Any) -> Any:
    """Convert a sequence of finite numbers to a tuple; None for others."""
    if isinstance(values, (list, tuple)) and all(map(_is_number, values)):
        return tuple(values)
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) < float('inf'))
