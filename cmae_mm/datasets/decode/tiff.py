"""Decoding of TIFF files with any bit depth and number of channels.

8-bit grey and colour images are decoded by Pillow, all others by tifffile.
Compressions for which tifffile needs imagecodecs, and masks of missing pixels,
are decoded by rasterio if it is installed, otherwise by OpenCV.
"""
import io
import itertools
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from ...dependencies import MissingLibrary, install_command
from .convert import arrange, arrange_pages
from .image import (Encoded, ImageSettings, Parts, RawImage, UndecodableImage,
                    UnfitImage, Window, check_size, log_once, stand_upright)
from .maps import find_rasterio, open_parts, read_bands, require_rasterio
from .raster import from_pillow, open_image

_ORIENTATION, _NODATA = 274, 42113
# Tags of maps: GeoTIFF, and tags written by GDAL.
_MAP_TAGS = (33550, 33922, 34264, 34735, 42112, _NODATA, 50844)
_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples: kinds of alpha
# PhotometricInterpretation, and the channels of values that Pillow decodes.
_MINISWHITE, _PALETTE, _YCBCR = 0, 3, 6
_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
# Compressions that every libtiff decodes (CCITT, LZW, JPEG, Deflate,
# PackBits).
_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
_OLD_JPEG, _JPEG = 6, 7
_MASK = 4  # a bit of NewSubfileType
# Tags that a part of an image lacks: its kind, descriptions, orientation,
# offsets and other directories. Others are copied, of the types that every
# TIFF file may have.
_LEFT_OUT = (254, 270, 274, 305, 330, 34665, 34853, 273, 279, 324, 325)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8,
               11: 4, 12: 8}
# Types that OpenCV decodes without changing values.
_OPENCV_TYPES = ('int8', 'uint16', 'int16', 'int32', 'float32', 'float64')


def read_tiff(data: bytes, settings: ImageSettings) -> RawImage:
    """Read a TIFF file's first image, with all its channels.

    Pages that the file declares as channels are channels. Overviews and
    thumbnails are skipped. Colours premultiplied by alpha are divided by it.
    The alpha band of a map is data unless it has one or two values, because
    GDAL tags any fourth band as alpha.

    Args:
        data (bytes): The file.
        settings (ImageSettings): ``channels``, ``bands`` and ``pages`` are
            read.

    Returns:
        RawImage: Of the file's type.

    Raises:
        UndecodableImage: If its colour space is not supported.
        UnfitImage: If it has several pages and ``pages`` is None.
        MissingLibrary: If a library is needed that is not installed.
    """
    raw, is_map = _read_image(data, settings)
    if raw.alpha and is_map and len(np.unique(raw.pixels[..., -1])) > 2:
        return raw._replace(alpha=False)
    return raw


def _read_image(data: bytes, settings: ImageSettings
                ) -> tuple[RawImage, bool]:
    """Read an image; also return whether it is a map."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        is_map = _is_map(file.pages.first)
        if _is_plain(file):
            return from_pillow(open_image(data, settings), settings), is_map
        return _read_deep(data, file, settings), is_map


def _is_map(page: Any) -> bool:
    return any(tag in page.tags for tag in _MAP_TAGS)


def open_tiff(stack: ExitStack, data: Encoded,
              settings: ImageSettings) -> Parts | None:
    """Open a tiled TIFF file, or one of more than ``max_pixels``, in parts.

    Values are those of :func:`read_tiff`.

    Args:
        stack (ExitStack): Closes the file.
        data (bytes | Path): The file.
        settings (ImageSettings): The settings.

    Returns:
        Parts | None: None for one that has to be decoded whole.

    Raises:
        UnfitImage: If it has several pages and ``pages`` is None.
        MissingLibrary: If a library is needed that is not installed.
    """
    source: Any = data if isinstance(data, Path) else io.BytesIO(data)
    file = stack.enter_context(tifffile.TiffFile(source))
    series = file.series[0]
    page: Any = series.keyframe
    is_large = page.imagelength * page.imagewidth > settings.max_pixels
    if not (is_large or page.is_tiled) or (
            len(series.pages) > 1 or page.imagedepth > 1
            or int(page.compression) == _OLD_JPEG):
        return None
    if _check_pages(file, series, settings, is_part=True):
        if not is_large:
            return None
        require_rasterio('has a mask of missing pixels')
        parts = open_parts(
            stack, data, lambda pixels, missing, _: _finish(
                page, pixels, missing))._replace(has_missing=True)
    else:
        levels = sorted((other for other in [
            page, *file.pages, *(page.pages or ())]
            if other is page or _is_overview(other, page)),
            key=lambda other: -other.imagelength)
        parts = Parts(
            [(level.imagelength, level.imagewidth) for level in levels],
            lambda level, window: _read_part(
                file, levels[level], window, settings),
            _segment_size(page)[0],
            page.dtype.kind == 'f' or _NODATA in page.tags)
    return parts._replace(orientation=_orientation_of(page), is_map=(
        _is_map(page) and settings.bands is None
        and settings.channels not in (None, page.samplesperpixel)
        and page.extrasamples[-1:] not in ((), (0, ))))


def _is_overview(other: Any, page: Any) -> bool:
    """Whether a page is a smaller version of the image, not a label."""
    return (int(getattr(other, 'subfiletype', 0) or 0) == 1
            and other.imagelength < page.imagelength
            and abs(other.imagewidth - page.imagewidth * (
                other.imagelength / page.imagelength)) <= 2
            and (other.dtype, other.samplesperpixel, other.photometric) == (
                page.dtype, page.samplesperpixel, page.photometric))


def _segment_size(page: Any) -> tuple[int, int]:
    """Return height and width of a page's tiles or strips."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _read_part(file: Any, page: Any, window: Window,
               settings: ImageSettings) -> RawImage:
    """Read a window of a page by writing its tiles to a separate file."""
    top, left, height, width = window
    rows, columns = _segment_size(page)
    down, across = (-(-side // size) for side, size in (
        (page.imagelength, rows), (page.imagewidth, columns)))
    y, x = top // rows, left // columns
    bottom, right = -(-(top + height) // rows), -(-(left + width) // columns)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    chosen = [(plane * down + row) * across + column for plane in range(planes)
              for row in range(y, bottom) for column in range(x, right)]
    data = _cut(file, page, chosen,
                min(bottom * rows, page.imagelength) - y * rows,
                min(right * columns, page.imagewidth) - x * columns)
    raw = _read_image(data, settings._replace(max_pixels=2**62))[0]
    part = (slice(top - y * rows, top - y * rows + height),
            slice(left - x * columns, left - x * columns + width))
    return raw._replace(
        pixels=raw.pixels[part],
        missing=None if raw.missing is None else raw.missing[part])


def _cut(file: Any, page: Any, chosen: Sequence[int], height: int,
         width: int) -> bytes:
    """Write a TIFF file with unchanged tiles or strips of a page."""
    source, order = file.filehandle, file.byteorder

    def take(offset: int, size: int) -> bytes:
        source.seek(offset)
        return source.read(size)

    entries = {}
    for tag in page.tags:
        if tag.code not in _LEFT_OUT and int(tag.dtype) in _TYPE_SIZES:
            entries[tag.code] = int(tag.dtype), tag.count, take(
                tag.valueoffset, _TYPE_SIZES[int(tag.dtype)] * tag.count)
    segments = [take(page.dataoffsets[i], page.databytecounts[i])
                for i in chosen]
    sizes = list(map(len, segments))
    codes = (324, 325) if page.is_tiled else (273, 279)
    # The segments come first, after the header.
    offsets = [8 + offset for offset in itertools.accumulate(
        sizes[:-1], initial=0)]
    for code, values in ((256, [width]), (257, [height]),
                         (codes[0], offsets), (codes[1], sizes)):
        entries[code] = 4, len(values), struct.pack(
            f'{order}{len(values)}I', *values)
    start = 8 + sum(sizes)
    start += start % 2
    extra = start + 6 + 12 * len(entries)
    directory, tail = struct.pack(f'{order}H', len(entries)), b''
    for code, (kind, count, value) in sorted(entries.items()):
        directory += struct.pack(f'{order}HHI', code, kind, count)
        if len(value) > 4:
            directory += struct.pack(f'{order}I', extra + len(tail))
            tail += value + b'\0' * (len(value) % 2)
        else:
            directory += value.ljust(4, b'\0')
    head = (b'II' if order == '<' else b'MM') + struct.pack(
        f'{order}HI', 42, start)
    return b''.join([head, *segments, b'\0' * (sum(sizes) % 2), directory,
                     b'\0' * 4, tail])


def _is_plain(file: Any) -> bool:
    """Whether Pillow decodes all of it: one page, 8 bits, grey or colour."""
    page = file.pages.first
    colours = _CHANNELS.get(int(page.photometric))
    extra = tuple(map(int, page.extrasamples))
    return (
        len(file.pages) == 1 and page.bitspersample in (1, 2, 4, 8)
        and int(page.sampleformat) == 1 and page.imagedepth == 1
        and int(page.compression) in _COMPRESSIONS
        and page.samplesperpixel == (colours or 0) + len(extra)
        and (extra in ((), (_UNASSOCIATED, ))
             or extra == (_ASSOCIATED, ) and colours == 3)
        and _NODATA not in page.tags
        and all(page.databytecounts))  # GDAL omits empty tiles


def _read_deep(data: bytes, file: Any, settings: ImageSettings) -> RawImage:
    """Read an image of more than 8 bits or 4 channels, or with nodata."""
    series = file.series[0]
    page = series.keyframe
    has_mask = _check_pages(file, series, settings)
    kind = int(page.photometric)
    if kind not in _CHANNELS or kind == _PALETTE or (
            kind == _YCBCR and int(page.compression) != _JPEG):
        raise UndecodableImage(
            f'its colours are {getattr(page.photometric, "name", kind)} of '
            f'{page.bitspersample} bits, which are not supported')
    missing = None
    if not has_mask:
        pixels = _read_pixels(data, series, page, settings)
    elif len(series.pages) > 1:
        raise UndecodableImage('it has masks and several pages')
    else:
        require_rasterio('has a mask of missing pixels')
        pixels, missing = read_bands(data)
    raw, orientation = _finish(page, pixels, missing), _orientation_of(page)
    return raw._replace(
        pixels=stand_upright(raw.pixels, orientation),
        missing=None if raw.missing is None else stand_upright(
            raw.missing, orientation))


def _orientation_of(page: Any) -> int:
    return getattr(page.tags.get(_ORIENTATION), 'value', 1)


def _finish(page: Any, pixels: np.ndarray,
            missing: np.ndarray | None) -> RawImage:
    """Convert stored values of a page to colours."""
    kind = int(page.photometric)
    extra = int(page.extrasamples[-1]) if len(page.extrasamples) else 0
    if kind == _MINISWHITE and pixels.dtype.kind == 'u':
        pixels = (2**page.bitspersample - 1) - pixels
    if extra == _ASSOCIATED:
        pixels = _divide_by_alpha(pixels)
    nodata = page.tags.get(_NODATA)
    found = nodata and _find_nodata(pixels, str(nodata.value))
    if found is not None:
        missing = found if missing is None else found | missing
    return RawImage(pixels, extra in (_ASSOCIATED, _UNASSOCIATED), missing)


def _chosen(series: Any, settings: ImageSettings) -> Any:
    """Return a series of pages, or only its first page if that is enough."""
    is_first = settings.pages == 'first' and 'C' not in series.axes
    return series.keyframe if is_first else series


def _check_pages(file: Any, series: Any, settings: ImageSettings,
                 is_part: bool = False) -> bool:
    """Check that a file is one image; return whether it has a mask."""
    page = series.keyframe
    height, width = page.imagelength, page.imagewidth
    size = _chosen(series, settings).size
    if not is_part:
        check_size(settings, height, width, max(
            size // (height * width), 1) * series.dtype.itemsize)
    own = {p.index for p in series.pages if p is not None}
    kinds = [int(getattr(other, 'subfiletype', 0) or 0)
             for other in file.pages]
    # Overviews, thumbnails and masks have a kind.
    others = sum(not kind and number not in own
                 for number, kind in enumerate(kinds))
    if others and settings.pages is None:
        raise UnfitImage(
            f'has {others} page(s) of another size in addition to its first '
            "image; set pages='first' to skip these, or save each as a "
            'separate file')
    return any(kind & _MASK for kind in kinds)


def _read_pixels(data: bytes, series: Any, page: Any,
                 settings: ImageSettings) -> np.ndarray:
    """Read all pages of a series, as (H, W, C)."""
    try:
        pixels = _chosen(series, settings).asarray()
    except (ImportError, KeyError, NotImplementedError, ValueError) as error:
        if 'imagecodecs' not in str(error) and not isinstance(
                error, ImportError):
            raise
        return arrange_pages(
            _read_compressed(data, series, page, str(error)), series.axes,
            'pages', settings.pages)
    axes = _chosen(series, settings).axes
    # A numpy array that tifffile has split into pages of rows.
    if (series.kind == 'shaped' and settings.pages is None
            and axes.endswith('YX') and axes[0] not in 'SC'
            and pixels.ndim == 3):
        return arrange(pixels, settings)
    return arrange_pages(pixels, axes, 'pages', settings.pages)


def _read_compressed(data: bytes, series: Any, page: Any,
                     reason: str) -> np.ndarray:
    """Read compressions that tifffile lacks, in tifffile's shape."""
    single = len(series.pages) == 1
    if single and find_rasterio():
        bands, _ = read_bands(data)
        pixels = bands.transpose(2, 0, 1) if (
            page.axes.startswith('S')) else bands
        if pixels.size == series.size and pixels.dtype == series.dtype:
            return pixels.reshape(series.shape)
    pages = _read_by_opencv(data, page)
    if pages is not None and len(pages) == len(series.pages):
        return np.stack(pages).reshape(series.shape)
    others = '`pip install imagecodecs`'
    if single and not find_rasterio():
        others = f'`{install_command("geotiff")}` (rasterio), or {others}'
    raise MissingLibrary(
        'has a compression for which tifffile needs another library '
        f'({reason}); install one with {others}')


def _read_by_opencv(data: bytes, page: Any) -> list[np.ndarray] | None:
    """Read all pages like this one; None where OpenCV would change them."""
    samples = page.samplesperpixel
    if (samples > 4 or page.dtype.name not in _OPENCV_TYPES
            or page.bitspersample != 8 * page.dtype.itemsize
            or page.planarconfig != 1 and samples > 1):
        return None
    _, pages = cv2.imdecodemulti(
        np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    order = [2, 1, 0, 3][:samples] if samples >= 3 else slice(None)
    shape = (page.imagelength, page.imagewidth, samples)
    return [p.reshape(shape)[..., order] for p in pages
            if p.dtype == page.dtype and p.size == np.prod(shape)]


def _divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Divide colours by premultiplied alpha."""
    dtype = pixels.dtype
    white = 1 if dtype.kind == 'f' else np.iinfo(dtype).max
    values = pixels.astype(np.float64)
    colours, alpha = values[..., :-1], values[..., -1:]
    colours = (colours * white / np.where(alpha == 0, 1, alpha)).clip(0, white)
    if dtype.kind != 'f':
        colours = np.rint(colours)
    return np.concatenate([colours.astype(dtype), pixels[..., -1:]], axis=2)


def _find_nodata(pixels: np.ndarray, text: str) -> np.ndarray | None:
    """Find the pixels with the nodata value."""
    text, dtype = text.strip('\0 '), pixels.dtype
    try:
        value: Any = float(text)
        if dtype.kind in 'iu' and value.is_integer():
            value = int(text) if text.lstrip('+-').isdigit() else int(value)
    except ValueError:
        value = None
    if dtype.kind == 'f' and value is not None:
        with np.errstate(over='ignore'):
            # Rounded as the file's own type rounds it; NaN is missing anyway.
            return pixels == dtype.type(value)
    if isinstance(value, int) and (
            np.iinfo(dtype).min <= value <= np.iinfo(dtype).max):
        return pixels == dtype.type(value)
    log_once('nodata', f'a TIFF file declares missing pixels by {text!r}, '
             f'which {dtype} cannot represent. No pixel is treated as '
             'missing, also in other such files.')
    return None
