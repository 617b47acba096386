"""TIFF files of any depth and number of channels, through tifffile.

What tifffile cannot read by itself (compressions that need imagecodecs, masks
of missing pixels) goes through rasterio where that is installed, or OpenCV.
"""
import importlib.util
import io
import warnings
from typing import Any, List, NamedTuple, Optional

import cv2
import numpy as np
import tifffile

from ...dependencies import MissingLibrary
from ...packaged import install_command
from .arrays import arrange, arrange_pages
from .raw_image import (
    RawImage,
    UndecodableImage,
    UnfitImage,
    check_size,
    stand_upright,
)
from .settings import ImageSettings

_NODATA = 42113
_ORIENTATION = 274
_ALPHA = (1, 2)  # ExtraSamples: associated or not
_MINISWHITE, _PALETTE = 0, 3
_MASK = 4  # a bit of NewSubfileType
# What OpenCV gives as it is.
_OPENCV_TYPES = ('uint8', 'int8', 'uint16', 'int16', 'int32', 'float32',
                 'float64')


class _Layout(NamedTuple):
    """What a file's first image is, as its tags say.

    Args:
        series (Any): tifffile's, of all pages that belong together.
        page (Any): The first of these pages.
        has_mask (bool): Whether another page says which pixels are missing.
    """

    series: Any
    page: Any
    has_mask: bool


def read_tiff(data: bytes, settings: ImageSettings) -> RawImage:
    """Read a TIFF file's first image, with all its channels.

    Pages that the file calls channels are channels. Overviews and thumbnails
    are left out.

    Args:
        data (bytes): The file.
        settings (ImageSettings): ``channels``, ``bands`` and ``pages`` are
            looked at.

    Returns:
        RawImage: Of the file's type.

    Raises:
        UnfitImage: If it has several pages, and nothing says what they are.
        MissingLibrary: If a library is needed that is not installed.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        layout = _look(file, settings)
        series, page = layout.series, layout.page
        if int(page.photometric) == _PALETTE:
            raise UndecodableImage('it has a palette of more than 8 bits')
        missing = None
        if layout.has_mask:
            read = _read_mask_too(data, series)
            pixels, missing = read.pixels, read.missing
        else:
            pixels = _read_pixels(data, series, page, settings)
        orientation = _tag(page, _ORIENTATION) or 1
        nodata = _tag(page, _NODATA)
        alpha = (len(page.extrasamples) > 0
                 and int(page.extrasamples[-1]) in _ALPHA)
        if int(page.photometric) == _MINISWHITE and pixels.dtype.kind == 'u':
            pixels = (2**page.bitspersample - 1) - pixels
    if nodata is not None:
        missing = _find_nodata(pixels, str(nodata))
    if missing is not None:
        missing = stand_upright(missing, orientation)
    return RawImage(stand_upright(pixels, orientation), alpha, missing)


def _look(file: Any, settings: ImageSettings) -> _Layout:
    """Find the pages of the first image, and check that it is one."""
    series = file.series[0]
    page = series.keyframe
    height, width = page.imagelength, page.imagewidth
    channels = max(series.size // (height * width), 1)
    check_size(height, width, channels * series.dtype.itemsize)
    own = {p.index for p in series.pages if p is not None}
    has_mask, others = False, 0
    for number, other in enumerate(file.pages):
        kind = int(other.subfiletype or 0) if hasattr(
            other, 'subfiletype') else 0
        has_mask |= bool(kind & _MASK)
        # Overviews, thumbnails, masks
        others += number not in own and not kind
    if others and settings.pages is None:
        raise UnfitImage(
            f"has {others} page(s) of another size beside its first image: "
            "set pages='first' to leave these out, or save each as a file of "
            'its own')
    return _Layout(series, page, has_mask)


def _read_pixels(data: bytes, series: Any, page: Any,
                 settings: ImageSettings) -> np.ndarray:
    """Read all pages of a series, as (H, W, C)."""
    try:
        pixels = series.asarray()
    except (ImportError, KeyError, NotImplementedError, ValueError) as error:
        if 'imagecodecs' not in str(error) and not isinstance(
                error, ImportError):
            raise
        pixels = _read_compressed(data, series, page, str(error))
    axes = series.axes
    # A bare array of numpy, which tifffile has cut into pages of rows.
    if (series.kind == 'shaped' and settings.pages is None
            and axes.endswith('YX') and axes[0] not in 'SC'
            and pixels.ndim == 3):
        return arrange(pixels, settings)
    return arrange_pages(pixels, axes, 'pages', settings.pages)


def _read_compressed(data: bytes, series: Any, page: Any,
                     reason: str) -> np.ndarray:
    """Read what tifffile cannot without imagecodecs, as tifffile would."""
    if len(series.pages) == 1 and find_rasterio():
        bands = read_bands(data).pixels
        pixels = bands.transpose(2, 0, 1) if (
            page.axes.startswith('S')) else bands
        if pixels.size == series.size and pixels.dtype == series.dtype:
            return pixels.reshape(series.shape)
    pages = _read_by_opencv(data, page)
    if pages is not None and len(pages) == len(series.pages):
        return np.stack(pages).reshape(series.shape)
    others = '`pip install imagecodecs`'
    if len(series.pages) == 1 and not find_rasterio():
        others = f'`{install_command("geotiff")}` (rasterio), or {others}'
    raise MissingLibrary(
        f'is compressed in a way that tifffile reads with another library '
        f'({reason}); install one with {others}')


def _read_by_opencv(data: bytes, page: Any) -> Optional[List[np.ndarray]]:
    """Read all pages like this one; None where OpenCV would change them."""
    samples = page.samplesperpixel
    if (samples > 4 or page.dtype.name not in _OPENCV_TYPES
            or page.bitspersample != 8 * page.dtype.itemsize
            or page.planarconfig != 1 and samples > 1):
        return None
    read, pages = cv2.imdecodemulti(
        np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if not read:
        return None
    order = [2, 1, 0, 3][:samples] if samples >= 3 else slice(None)
    pages = [p.reshape(*p.shape[:2], -1) for p in pages]
    pages = [
        p[..., order] for p in pages
        if p.shape == (page.imagelength, page.imagewidth, samples)
        and p.dtype == page.dtype
    ]
    return pages


def _read_mask_too(data: bytes, series: Any) -> RawImage:
    if not find_rasterio():
        raise MissingLibrary(
            'has a mask of missing pixels, which rasterio reads: install it '
            f'with `{install_command("geotiff")}`')
    if len(series.pages) > 1:
        raise UndecodableImage('it has masks and several pages')
    return read_bands(data)


def _tag(page: Any, number: int) -> Any:
    tag = page.tags.get(number)
    return None if tag is None else tag.value


def _find_nodata(pixels: np.ndarray, text: str) -> Optional[np.ndarray]:
    """Find the pixels that have the value which stands for none."""
    try:
        value = float(text.strip('\0 '))
    except ValueError:
        return None
    if np.isnan(value):
        return None  # as all that is no number is missing
    # Rounded as the file's own type rounds it.
    if pixels.dtype.kind == 'f':
        return pixels == np.array(value).astype(pixels.dtype)
    return pixels == value


def find_rasterio() -> bool:
    """Say whether rasterio is installed."""
    return importlib.util.find_spec('rasterio') is not None


def read_bands(data: bytes) -> RawImage:
    """Read all bands of a TIFF file, and which pixels its masks leave out.

    Args:
        data (bytes): The file.

    Returns:
        RawImage: Of the file's type; values as stored, without the scale and
        offset that a band may have.
    """
    import rasterio
    from rasterio.enums import MaskFlags
    from rasterio.errors import NotGeoreferencedWarning
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.MemoryFile(data) as memory, memory.open() as file:
            pixels = file.read().transpose(1, 2, 0)
            flags = {flag for band in file.mask_flag_enums for flag in band}
            missing = None
            # Of a mask in the file: neither alpha nor a nodata value.
            if MaskFlags.per_dataset in flags and (
                    MaskFlags.alpha not in flags):
                missing = file.dataset_mask()[..., None] == 0
    return RawImage(np.ascontiguousarray(pixels), missing=missing)
