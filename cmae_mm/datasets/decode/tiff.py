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
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile

from ...dependencies import MissingLibrary, install_command
from .convert import pages_to_hwc, to_hwc
from .image import (Encoded, ImageSettings, Parts, RawImage, UndecodableImage,
                    UnfitImage, Window, apply_orientation, check_size,
                    count_pixels, join, log_once)
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
# Size in bytes of the strips that uncompressed images are read in.
_STRIP_BYTES = 2**16
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


def _read_image(data: bytes, settings: ImageSettings,
                is_deep: bool = False) -> tuple[RawImage, bool]:
    """Read an image; also return whether it is a map.

    Args:
        data (bytes): The file.
        settings (ImageSettings): The settings.
        is_deep (bool): Whether bits and palettes are not converted to 8-bit
            colours, as in files whose pages are channels. Defaults to False.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        page: Any = series.keyframe
        check_size(settings, page.imagelength, page.imagewidth, max(
            _chosen(series, settings).nbytes // _area(page), 1))
        has_mask = _has_mask(file, series, settings)
        if not (is_deep or has_mask) and _is_plain(page) and (
                _find_planes(series, settings) == [0]):
            if file.is_bigtiff and file.byteorder == '>':  # not for Pillow
                raw = _read_part(
                    file, _find_segments(series, 0),
                    (0, 0, page.imagelength, page.imagewidth), settings, False)
                raw = raw._replace(pixels=apply_orientation(
                    raw.pixels, _orientation_of(page)))
            else:
                raw = from_pillow(open_image(data, settings), settings)
        else:
            raw = _read_deep(data, series, has_mask, settings)
        return raw, _is_map(page)


def _is_map(page: Any) -> bool:
    return any(tag in page.tags for tag in _MAP_TAGS)


def open_tiff(stack: ExitStack, data: Encoded,
              settings: ImageSettings) -> Parts | None:
    """Open a tiled TIFF file, or one of more than ``max_pixels``, in parts.

    A part of pages that are channels is read from each page. Values are those
    of :func:`read_tiff`.

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
    planes = _find_planes(series, settings)
    pixel_bytes = max(page.nbytes // _area(page), 1) * len(planes)
    is_large = count_pixels(
        page.imagelength, page.imagewidth, pixel_bytes) > settings.max_pixels
    if not planes or not (is_large or page.is_tiled and len(planes) == 1) or (
            page.imagedepth > 1 or int(page.compression) == _OLD_JPEG):
        return None
    if _has_mask(file, series, settings):
        if not is_large:
            return None
        _check_mask(series)
        parts = open_parts(
            stack, data, lambda pixels, missing, _: _finish(
                page, pixels, missing))._replace(has_missing=True)
    else:
        levels = [[_find_segments(level, number) for number in planes]
                  for level in _find_levels(file, series)]
        if len(planes) > 1:
            _check_colours(page)
        parts = Parts(
            [(level[0].page.imagelength, level[0].page.imagewidth)
             for level in levels],
            lambda level, window: join([
                _read_part(file, segments, window, settings, len(planes) > 1)
                for segments in levels[level]], axis=2),
            levels[0][0].rows, levels[0][0].columns,
            page.dtype.kind == 'f' or _NODATA in page.tags)
    return parts._replace(
        pixel_bytes=pixel_bytes, orientation=_orientation_of(page),
        is_map=_is_map(page) and settings.bands is None
        and settings.channels not in (None, page.samplesperpixel)
        and page.extrasamples[-1:] not in ((), (0, )))


def _area(page: Any) -> int:
    return page.imagelength * page.imagewidth


def _find_planes(series: Any, settings: ImageSettings) -> list[int]:
    """Return the numbers of the pages that are read, in order of channels.

    Empty if a page is not part of this file, or has a row of the image.
    """
    axes, shape, page = series.axes, series.shape, series.keyframe
    count = series.size // page.size
    if count == 1:
        return [0]
    if _is_plain_array(series, settings):
        image = to_hwc(np.broadcast_to(np.uint8(0), shape), settings)
        return [*range(count)] if image.shape[:2] == shape[1:] else []
    if series.is_multifile or None in list(series):
        return []
    numbers = np.arange(count).reshape(*shape[:-len(page.shape)], 1, 1)
    return pages_to_hwc(
        numbers, f'{axes[:-len(page.shape)]}YX', 'pages', settings.pages
    ).ravel().tolist()


def _is_plain_array(series: Any, settings: ImageSettings) -> bool:
    """Whether tifffile has split a numpy array of three axes into pages."""
    axes = series.axes
    return series.kind == 'shaped' and settings.pages is None and len(
        axes) == 3 and axes.endswith('YX') and axes[0] not in 'SC'


def _find_levels(file: Any, series: Any) -> list[Any]:
    """List an image and its overviews, from large to small."""
    page = series.keyframe
    if series.size > page.size:
        return [level for level in series.levels
                if level.size // level.keyframe.size == (
                    series.size // page.size)]
    levels = [page, *(other for other in [*file.pages, *(page.pages or ())]
                      if _is_overview(other, page))]
    return [tifffile.TiffPageSeries([level]) for level in sorted(
        levels, key=lambda level: -level.imagelength)]


def _is_overview(other: Any, page: Any) -> bool:
    """Whether a page is a smaller version of the image, not a label."""
    return (int(getattr(other, 'subfiletype', 0) or 0) == 1
            and other.imagelength < page.imagelength
            and abs(other.imagewidth - page.imagewidth * (
                other.imagelength / page.imagelength)) <= 2
            and (other.dtype, other.samplesperpixel, other.photometric) == (
                page.dtype, page.samplesperpixel, page.photometric))


class _Segments(NamedTuple):
    """Tiles or strips of a page: their size, and their places in the file."""

    page: Any
    rows: int
    columns: int
    offsets: Sequence[int]
    sizes: Sequence[int]


def _find_segments(series: Any, number: int) -> _Segments:
    """Find the tiles or strips of a page of a series.

    Uncompressed images have strips of any height.
    """
    # A large file may have a directory of its first page only.
    skipped = number if len(series) == 1 else 0
    page, frame = series.keyframe, series[number - skipped]
    if page.is_tiled or not page.is_final:
        size = (page.tilelength, page.tilewidth) if page.is_tiled else (
            min(page.rowsperstrip, page.imagelength), page.imagewidth)
        return _Segments(page, *size, frame.dataoffsets, frame.databytecounts)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    line = page.nbytes // (page.imagelength * planes)
    rows = min(max(_STRIP_BYTES // line, 1), page.imagelength)
    start = frame.dataoffsets[0] + skipped * page.nbytes
    return _Segments(
        page, rows, page.imagewidth,
        [start + (plane * page.imagelength + y) * line
         for plane in range(planes) for y in range(0, page.imagelength, rows)],
        [min(rows, page.imagelength - y) * line
         for _ in range(planes) for y in range(0, page.imagelength, rows)])


def _read_part(file: Any, segments: _Segments, window: Window,
               settings: ImageSettings, is_deep: bool) -> RawImage:
    """Read a window of a page by writing its tiles to a separate file."""
    top, left, height, width = window
    page, rows, columns, _, _ = segments
    down, across = (-(-side // size) for side, size in (
        (page.imagelength, rows), (page.imagewidth, columns)))
    y, x = top // rows, left // columns
    bottom, right = -(-(top + height) // rows), -(-(left + width) // columns)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    chosen = [(plane * down + row) * across + column for plane in range(planes)
              for row in range(y, bottom) for column in range(x, right)]
    data = _cut(file, segments, chosen,
                min(bottom * rows, page.imagelength) - y * rows,
                min(right * columns, page.imagewidth) - x * columns)
    raw = _read_image(data, settings._replace(max_pixels=2**62), is_deep)[0]
    part = (slice(top - y * rows, top - y * rows + height),
            slice(left - x * columns, left - x * columns + width))
    return raw._replace(
        pixels=np.ascontiguousarray(raw.pixels[part]),  # frees the others
        missing=None if raw.missing is None else raw.missing[part])


def _cut(file: Any, found: _Segments, chosen: Sequence[int], height: int,
         width: int) -> bytes:
    """Write a TIFF file with unchanged tiles or strips of a page."""
    source, order, page = file.filehandle, file.byteorder, found.page

    def take(offset: int, size: int) -> bytes:
        source.seek(offset)
        return source.read(size)

    entries = {}
    for tag in page.tags:
        if tag.code not in _LEFT_OUT and int(tag.dtype) in _TYPE_SIZES:
            entries[tag.code] = int(tag.dtype), tag.count, take(
                tag.valueoffset, _TYPE_SIZES[int(tag.dtype)] * tag.count)
    segments = [take(found.offsets[i], found.sizes[i]) for i in chosen]
    sizes = list(map(len, segments))
    codes = (324, 325) if page.is_tiled else (273, 279)
    # The segments come first, after the header.
    offsets = [8 + offset for offset in itertools.accumulate(
        sizes[:-1], initial=0)]
    if not page.is_tiled:
        entries[278] = 4, 1, struct.pack(f'{order}I', found.rows)
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


def _is_plain(page: Any) -> bool:
    """Whether Pillow decodes the first page: 8 bits, grey or colour."""
    colours = _CHANNELS.get(int(page.photometric))
    extra = tuple(map(int, page.extrasamples))
    return (
        page.index == 0 and page.bitspersample in (1, 2, 4, 8)
        and int(page.sampleformat) == 1 and page.imagedepth == 1
        and int(page.compression) in _COMPRESSIONS
        and page.samplesperpixel == (colours or 0) + len(extra)
        and (extra in ((), (_UNASSOCIATED, ))
             or extra == (_ASSOCIATED, ) and colours == 3)
        and _NODATA not in page.tags
        and all(page.databytecounts))  # GDAL omits empty tiles


def _read_deep(data: bytes, series: Any, has_mask: bool,
               settings: ImageSettings) -> RawImage:
    """Read an image of more than 8 bits or 4 channels, or with nodata."""
    page = series.keyframe
    _check_colours(page)
    missing = None
    if has_mask:
        _check_mask(series)
        pixels, missing = read_bands(data)
    else:
        pixels = _read_pixels(data, series, page, settings)
    raw, orientation = _finish(page, pixels, missing), _orientation_of(page)
    return raw._replace(
        pixels=apply_orientation(raw.pixels, orientation),
        missing=None if raw.missing is None else apply_orientation(
            raw.missing, orientation))


def _check_colours(page: Any) -> None:
    """Check that tifffile decodes the colours."""
    kind = int(page.photometric)
    if kind not in _CHANNELS or kind == _PALETTE or (
            kind == _YCBCR and int(page.compression) != _JPEG):
        raise UndecodableImage(
            f'its colours are {getattr(page.photometric, "name", kind)} of '
            f'{page.bitspersample} bits, which are not supported')


def _check_mask(series: Any) -> None:
    """Check that the mask of missing pixels can be read."""
    if len(series.pages) > 1:
        raise UndecodableImage('it has masks and several pages')
    require_rasterio('has a mask of missing pixels')


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


def _has_mask(file: Any, series: Any, settings: ImageSettings) -> bool:
    """Check that a file is one image; return whether it has a mask."""
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
        return pages_to_hwc(
            _read_compressed(data, series, page, str(error)), series.axes,
            'pages', settings.pages)
    axes = _chosen(series, settings).axes
    if _is_plain_array(series, settings):
        return to_hwc(pixels, settings)
    return pages_to_hwc(pixels, axes, 'pages', settings.pages)


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
