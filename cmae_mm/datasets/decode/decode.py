"""Decoding of image files, for training and all evaluations."""
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ...dependencies import MissingLibrary
from .convert import (choose_channels, convert, find_missing, mean_of,
                      read_numpy, resize_image, resize_rows, sum_valid)
from .image import (RGB, Encoded, ImageSettings, Parts, RawImage,
                    TooLargeImage, UndecodableImage, UnfitImage, Window,
                    apply_orientation, check_size, count_pixels, first_bytes,
                    is_dicom, is_jp2, is_numpy, is_tiff, join, log_once,
                    read_file_content, stored_window)
from .raster import read_raster

Size = tuple[int, int]
# Number of pixels of a block; larger parts are read in blocks.
_BLOCK = 2**21

# Loggers of libraries with messages about single files.
_LOGGERS = ('tifffile', 'rasterio._env', 'rasterio._err', 'pydicom',
            'PIL.TiffImagePlugin', 'PIL.PngImagePlugin')


def decode_image(data: bytes,
                 shrink_to: int | None = None,
                 settings: ImageSettings = RGB,
                 name: str = 'an image') -> np.ndarray:
    """Decode an image file, upright and without loss.

    The default settings return 8-bit colours in BGR: grey and palette images
    are converted to colour, and alpha is dropped, which is logged once.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): Shorter side in pixels that the caller
            needs. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if
            the result is not smaller. Defaults to None, full size.
        settings (ImageSettings): The settings. Defaults to 8-bit colour.
        name (str): The file's name, for errors.

    Returns:
        np.ndarray: (H, W, C), not always contiguous. Three channels of uint8
        are in BGR; all others keep the file's order.

    Raises:
        UndecodableImage: If it cannot be decoded, or is too large.
        UnfitImage: If decoding would lose information; the message has the
            file name and the setting that accepts it.
        MissingLibrary: If an optional library is needed; names the file.
    """
    return finish(read_image(data, name, settings, shrink_to), name, settings)


def finish(raw: RawImage, name: str, settings: ImageSettings) -> np.ndarray:
    """Convert an image to the settings, and log dropped alpha and frames.

    Args:
        raw (RawImage): The image as its file stores it.
        name (str): Its name, for errors.
        settings (ImageSettings): The settings.

    Returns:
        np.ndarray: See :func:`decode_image`.
    """
    image = convert(raw, name, settings)
    if raw.alpha and settings.bands is None and (
            image.shape[2] < raw.pixels.shape[2]):
        log_once(
            'alpha', f'{name} has an alpha channel, which is dropped, as in '
            'other images; one more channel (channels=4 for colour) keeps it.')
    if raw.is_animated:
        log_once(
            'frames', f'{name} is an animation; only the first frame of this '
            'and all other animations is used.')
    return image[..., ::-1] if settings.is_bgr else image


def read_image(data: bytes,
               name: str,
               settings: ImageSettings,
               shrink_to: int | None = None) -> RawImage:
    """Read an image file with all its channels, upright.

    Args:
        data (bytes): The file.
        name (str): Its name, for errors, and to detect DICOM files without the
            magic bytes.
        settings (ImageSettings): The settings, for files that can be read in
            several ways.
        shrink_to (int, optional): See :func:`decode_image`.

    Returns:
        RawImage: Image with the file's dtype and channels.

    Raises:
        UndecodableImage: If it cannot be read, or is too large.
        UnfitImage: If a setting is needed to read it; names the file.
        MissingLibrary: If an optional library is needed; names the file.
    """
    if not data:
        raise UndecodableImage('it is empty')
    with _reading(name):
        if is_tiff(data):
            from .tiff import read_tiff
            return read_tiff(data, settings)
        if is_jp2(data):
            from .maps import read_jp2
            return read_jp2(data, settings)
        if is_numpy(data):
            return read_numpy(data, settings)
        if is_dicom(data, name):
            from .dicom import read_dicom
            return read_dicom(data, settings)
        return read_raster(data, settings, shrink_to)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Add the file name to errors of decoding."""
    try:
        with _library_messages(name):
            yield
    except UndecodableImage:
        raise
    except (UnfitImage, MissingLibrary) as error:
        raise type(error)(f'{name} {error}') from error
    # Decoders raise many kinds of errors for broken files.
    except Exception as error:
        text = f'{type(error).__name__}: {error}'
        if isinstance(error, (LookupError, AttributeError)):
            text = f'it is damaged ({text})'
        raise UndecodableImage(text) from error


def decode_resized(data: Encoded,
                   choose: Callable[[int, int], tuple[Window, Size]],
                   settings: ImageSettings = RGB,
                   name: str = 'an image',
                   shrink_to: int | None = None) -> np.ndarray:
    """Decode a part of an image and resize it.

    For tiled TIFF files, and for TIFF and JPEG 2000 files with more than
    ``max_pixels``, only this part is decoded, in blocks of rows. The pixels
    equal those of the fully decoded image, unless the image has more than
    ``max_pixels`` and the file has overviews: then the smallest overview with
    enough pixels is used.

    Args:
        data (bytes | Path): The file, or the path of a large one.
        choose (Callable): Function from height and width of the image to the
            part, (y, x, height, width), and the size to resize it to, (height,
            width), all in pixels.
        settings (ImageSettings): The settings. Defaults to 8-bit colour.
        name (str): The file's name, for errors.
        shrink_to (int, optional): See :func:`decode_image`.

    Returns:
        np.ndarray: See :func:`decode_image`.

    Raises:
        ValueError: See :func:`decode_image`.
        MissingLibrary: If an optional library is needed; names the file.
    """
    with _opened_parts(data, settings, name) as parts:
        if parts is not None:
            return _resize_parts(parts, choose, settings, name)
    image = decode_image(read_file_content(data), shrink_to, settings, name)
    (y, x, height, width), size = choose(*image.shape[:2])
    return resize_image(image[y:y + height, x:x + width], size)


def decode_short(data: Encoded, short_side: int | None,
                 settings: ImageSettings, name: str) -> np.ndarray:
    """Decode an image, and resize it if it exceeds ``max_pixels``.

    Args:
        data (bytes | Path): See :func:`decode_resized`.
        short_side (int, optional): Shorter side of resized images in pixels.
            None does not resize.
        settings (ImageSettings): The settings.
        name (str): The file's name, for errors.

    Returns:
        np.ndarray: See :func:`decode_image`.

    Raises:
        ValueError: See :func:`decode_image`.
        MissingLibrary: If an optional library is needed; names the file.
    """
    def choose(height: int, width: int) -> tuple[Window, Size]:
        short, side = min(height, width), short_side or 1
        return (0, 0, height, width), (
            side * height // short, side * width // short)

    if short_side is not None:
        with _opened_parts(data, settings, name) as parts:
            if parts is not None and parts.is_large:
                return _resize_parts(parts, choose, settings, name)
    try:
        return decode_image(read_file_content(data), None, settings, name)
    except TooLargeImage:
        if short_side is None:
            raise
        return decode_resized(data, choose, settings, name, short_side)


def read_centre(data: Encoded, name: str, settings: ImageSettings
                ) -> tuple[RawImage, Size] | None:
    """Read the centre of an image of more than ``max_pixels``.

    Args:
        data (bytes | Path): The file, or the path of a large one.
        name (str): Its name, for errors.
        settings (ImageSettings): The settings.

    Returns:
        tuple | None: The centre, 4 million pixels, and height and width of the
        image; None for smaller images.

    Raises:
        ValueError: See :func:`decode_image`.
        MissingLibrary: If an optional library is needed; names the file.
    """
    with _opened_parts(data, settings, name) as parts:
        if parts is None or not parts.is_large:
            return None
        height, width = parts.levels[0]
        side = math.isqrt(2 * _BLOCK // count_pixels(1, 1, parts.pixel_bytes))
        rows, columns = min(height, side), min(width, side)
        raw = join([*_blocks(
            parts, 0, ((height - rows) // 2, (width - columns) // 2, rows,
                       columns), settings, name)], axis=0)
        if parts.is_map and len(np.unique(raw.pixels[..., -1])) > 2:
            raw = raw._replace(alpha=False)
        return raw, _oriented_size((height, width), parts)


class LargeImage:
    """An image of more than ``max_pixels``, of which windows are read.

    ``image[y:y + h, x:x + w]`` reads a window, as :func:`decode_image` returns
    it.

    Args:
        parts (Parts): The open file.
        stack (ExitStack): Closes the file.
        settings (ImageSettings): The settings.
        name (str): The file's name, for errors.

    Attributes:
        shape (tuple[int, int]): Height and width in pixels.
    """

    def __init__(self, parts: Parts, stack: ExitStack,
                 settings: ImageSettings, name: str) -> None:
        if _depends_on_all(parts, settings):
            settings = _resolve_settings(parts, settings, name)
        self._parts = parts._replace(is_map=False, has_missing=False)
        self._stack, self._settings, self._name = stack, settings, name
        self.shape = _oriented_size(parts.levels[0], parts)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (
            part.indices(side) for part, side in zip(window, self.shape))
        size = bottom - top, right - left
        return _resize_parts(
            self._parts, lambda *_: ((top, left, *size), size),
            self._settings, self._name)


def decode_windows(data: Encoded, settings: ImageSettings,
                   name: str) -> np.ndarray | LargeImage:
    """Decode an image, or open it if it has more than ``max_pixels``.

    Args:
        data (bytes | Path): The file, or the path of a large one.
        settings (ImageSettings): The settings.
        name (str): The file's name, for errors.

    Returns:
        np.ndarray | LargeImage: An image from which windows can be cut.

    Raises:
        ValueError: See :func:`decode_image`.
        MissingLibrary: If an optional library is needed; names the file.
    """
    stack = ExitStack()
    parts = stack.enter_context(_opened_parts(data, settings, name))
    if parts is not None and parts.is_large:
        return LargeImage(parts, stack, settings, name)
    stack.close()
    return decode_image(read_file_content(data), None, settings, name)


@contextmanager
def _opened_parts(data: Encoded, settings: ImageSettings,
                  name: str) -> Iterator[Parts | None]:
    """Open a file for reading parts; None if it must be decoded whole."""
    head, parts = first_bytes(data), None
    with ExitStack() as stack:
        with _reading(name):
            if is_tiff(head):
                from .tiff import open_tiff
                parts = open_tiff(stack, data, settings)
            elif is_jp2(head):
                from .maps import open_jp2
                parts = open_jp2(stack, data, settings)
        if parts is not None:
            parts = parts._replace(is_large=count_pixels(
                *parts.levels[0], parts.pixel_bytes) > settings.max_pixels)
            if not parts.is_large and (
                    _depends_on_all(parts, settings) or parts.orientation > 1):
                parts = None
        yield parts


def _oriented_size(size: Size, parts: Parts) -> Size:
    """Return height and width of the upright image, or back."""
    return size[::-1] if parts.orientation > 4 else size


def _depends_on_all(parts: Parts, settings: ImageSettings) -> bool:
    """Whether the pixels of a part depend on all pixels of the image."""
    return parts.is_map or settings.value_range == 'per_image' or (
        parts.has_missing and settings.fill == 'mean')


def _resize_parts(parts: Parts,
                  choose: Callable[[int, int], tuple[Window, Size]],
                  settings: ImageSettings, name: str) -> np.ndarray:
    full = parts.levels[0]
    window, size = choose(*_oriented_size(full, parts))
    y, x, height, width = stored_window(
        window, _oriented_size(full, parts), parts.orientation)
    size = _oriented_size(size, parts)
    level = 0
    if parts.is_large:
        if _depends_on_all(parts, settings):
            settings = _resolve_settings(parts, settings, name)
        for number, sides in enumerate(parts.levels):
            if (height * sides[0] >= size[0] * full[0]
                    and width * sides[1] >= size[1] * full[1]):
                level = number
    if level == 0 and parts.is_large and height > 8 * size[0]:
        log_once(
            'overviews', f'{name}, {full[1]}x{full[0]} pixels, has no '
            'overviews, so all pixels of a part are decoded; `gdaladdo -r '
            'average FILE 2 4 8 16` adds them.')
    rows, columns = (np.array(parts.levels[level]) / full).tolist()
    top, left = round(y * rows), round(x * columns)
    part = (top, left, max(round((y + height) * rows) - top, 1),
            max(round((x + width) * columns) - left, 1))
    resized = resize_rows(
        (finish(raw, name, settings) for raw in _blocks(
            parts, level, part, settings, name)), size)
    return apply_orientation(resized, parts.orientation)


def _blocks(parts: Parts, level: int, window: Window,
            settings: ImageSettings, name: str) -> Iterator[RawImage]:
    """Read a window in blocks of rows."""
    top, left, height, width = window
    check_size(settings, min(parts.rows, height), width, parts.pixel_bytes)
    cost = count_pixels(1, 1, parts.pixel_bytes)
    step = max(min(_BLOCK, settings.max_pixels) // cost // max(
        width, parts.columns) // parts.rows, 1) * parts.rows
    columns = max(_BLOCK // cost // step, parts.columns)
    y = top
    while y < top + height:
        end = min((y // parts.rows) * parts.rows + step, top + height)
        with _reading(name):
            found = [parts.read(level, (y, x, end - y, min(
                columns, left + width - x)))
                for x in range(left, left + width, columns)]
        raw, found = join(found, axis=1), []
        yield raw
        y = end


def _resolve_settings(parts: Parts, settings: ImageSettings,
                      name: str) -> ImageSettings:
    """Compute settings that depend on all pixels of the image."""
    level = len(parts.levels) - 1
    sums: Any = 0
    counts: Any = 0
    ends: list[Any] = []
    values: set[Any] = set()
    dtype = np.dtype(np.uint8)
    for raw in _blocks(parts, level, (0, 0, *parts.levels[level]), settings,
                       name):
        if parts.is_map and len(values) < 3:
            values.update(np.unique(raw.pixels[..., -1]).tolist())
            raw = raw._replace(alpha=len(values) < 3)  # others are data
        raw = choose_channels(raw, name, settings)
        missing = find_missing(raw)
        if missing is None:
            missing = np.zeros(raw.pixels.shape, bool)
        elif settings.fill not in (None, 'mean'):
            ends.append(settings.fill)
        found = sum_valid(raw.pixels, missing)
        sums, counts, dtype = sums + found[0], counts + found[1], (
            raw.pixels.dtype)
        valid = raw.pixels[~missing]
        if valid.size:
            ends = [min([*ends, valid.min()]), max([*ends, valid.max()])]
    if settings.fill == 'mean':
        means = mean_of(sums, counts, dtype).astype(dtype)
        settings = settings._replace(fill=means.tolist())
    if settings.value_range == 'per_image':
        settings = settings._replace(value_range=[[min(ends)], [max(ends)]])
    return settings


# Log records of libraries for the current file; None between files.
_logged: list[tuple[str, str]] | None = None


def _keep(record: logging.LogRecord) -> bool:
    if _logged is None:
        return True
    _logged.append((record.name, record.getMessage()))
    return False


for _logger in _LOGGERS:
    logging.getLogger(_logger).addFilter(_keep)


@contextmanager
def _library_messages(name: str) -> Iterator[None]:
    """Log messages of libraries about files, once for each kind."""
    global _logged
    _logged = messages = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            yield
    finally:
        _logged = None
    messages += [(w.category.__name__, str(w.message)) for w in caught]
    for kind, text in messages:
        # The reader of TIFF files reports these itself.
        if 'GDAL_NODATA' not in text and kind != 'NotGeoreferencedWarning':
            log_once(kind, f'{name}: {" ".join(text.split())} ({kind}; '
                     'further messages of this kind are not shown)')
