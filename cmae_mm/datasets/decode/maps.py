"""Decoding with rasterio: JPEG 2000, and TIFF files tifffile cannot read."""
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...dependencies import MissingLibrary, install_command
from .image import (Encoded, ImageSettings, Parts, RawImage, UndecodableImage,
                    Window, apply_orientation, check_size, count_pixels,
                    first_bytes)
from .raster import from_pillow, open_image, orientation_of

# Start of a JPEG 2000 image: its sizes, and the bits of each component.
_HEAD = b'\xff\x4f\xff\x51'
# Identifies the box with EXIF data.
_EXIF = b'JpgTiffExif->JP2'
# Size of GDAL's cache of decoded blocks in bytes.
_CACHE = 2**26


def find_rasterio() -> bool:
    """Return whether rasterio is installed."""
    return importlib.util.find_spec('rasterio') is not None


def require_rasterio(what: str) -> None:
    """Check that rasterio is installed.

    Raises:
        MissingLibrary: If it is not.
    """
    if not find_rasterio():
        raise MissingLibrary(f'{what}, which needs rasterio; install it with '
                             f'`{install_command("geotiff")}`')


def _open(stack: ExitStack, data: Encoded, level: int) -> Any:
    """Open a file, or one of its overviews."""
    import rasterio
    options = {} if level == 0 else dict(overview_level=level - 1)
    with _environment():
        if isinstance(data, Path):
            return stack.enter_context(rasterio.open(data, **options))
        memory = stack.enter_context(rasterio.MemoryFile(data))
        return stack.enter_context(memory.open(**options))


def _environment() -> Any:
    """Return GDAL's settings; these must be closed in the reverse order."""
    import rasterio
    return rasterio.Env(GDAL_CACHEMAX=_CACHE)


def _read(file: Any, window: Window | None = None
          ) -> tuple[np.ndarray, np.ndarray | None]:
    """Read all bands and the mask stored in the file.

    Values are unchanged; scale and offset of a band are not applied.
    """
    from rasterio.enums import MaskFlags
    from rasterio.windows import Window as Part
    part = None
    if window is not None:
        y, x, height, width = window
        part = Part(x, y, width, height)
    missing = None
    with _environment():
        pixels = file.read(window=part).transpose(1, 2, 0)
        flags = {flag for band in file.mask_flag_enums for flag in band}
        # Of a mask in the file: neither alpha nor a nodata value.
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            missing = file.dataset_mask(window=part)[..., None] == 0
    return np.ascontiguousarray(pixels), missing


def read_bands(data: Encoded) -> tuple[np.ndarray, np.ndarray | None]:
    """Read all bands of a file, and a mask of missing pixels or None."""
    with ExitStack() as stack:
        return _read(_open(stack, data, 0))


def open_parts(stack: ExitStack, data: Encoded,
               finish: Callable[..., RawImage]) -> Parts:
    """Open a file to read parts of it.

    Args:
        stack (ExitStack): Closes the file.
        data (bytes | Path): The file.
        finish (Callable): Converts pixels, a mask or None, and rasterio's
            data set to a RawImage.
    """
    files = [_open(stack, data, 0)]
    files += [_open(stack, data, 1 + number)
              for number in range(len(files[0].overviews(1)))]

    def read(level: int, window: Window) -> RawImage:
        return finish(*_read(files[level], window), files[level])

    return Parts([file.shape for file in files], read,
                 *files[0].block_shapes[0])


class _Jp2(NamedTuple):
    """Header of a JPEG 2000 file; ``bits`` is negative for signed values."""

    height: int
    width: int
    bits: tuple[int, ...]
    orientation: int


def _read_head(data: bytes) -> _Jp2:
    start = data.find(_HEAD)
    right, bottom, left, top = (
        int.from_bytes(data[start + i:start + i + 4], 'big')
        for i in (8, 12, 16, 20))
    count = int.from_bytes(data[start + 40:start + 42], 'big')
    kinds = data[start + 42:start + 42 + 3 * count:3]
    if start < 0 or not kinds:
        raise UndecodableImage('it is a damaged JPEG 2000 file')
    exif = data.find(_EXIF, 0, start)
    return _Jp2(
        bottom - top, right - left,
        tuple(127 - kind if kind > 127 else kind + 1 for kind in kinds),
        1 if exif < 0 else orientation_of(data[exif + len(_EXIF):start]))


def read_jp2(data: bytes, settings: ImageSettings) -> RawImage:
    """Read a JPEG 2000 file.

    Up to four components of 8 bits are decoded by Pillow, all others by
    rasterio, since Pillow scales values to 8 or 16 bits.

    Args:
        data (bytes): The file.
        settings (ImageSettings): The settings.

    Returns:
        RawImage: Of the file's type.

    Raises:
        UndecodableImage: If it is damaged or too large.
        MissingLibrary: If rasterio is needed and not installed.
    """
    height, width, bits, orientation = _read_head(data)
    if len(bits) <= 4 and set(bits) == {8}:
        raw = from_pillow(open_image(data, settings), settings)
    else:
        check_size(settings, height, width, len(bits) * 2)
        require_rasterio(f'is a JPEG 2000 file of {len(bits)} channel(s) of '
                         f'{max(map(abs, bits))} bits')
        with ExitStack() as stack:
            file = _open(stack, data, 0)
            raw = RawImage(_read(file)[0], _has_alpha(file))
    return raw._replace(pixels=apply_orientation(raw.pixels, orientation))


def open_jp2(stack: ExitStack, data: Encoded,
             settings: ImageSettings) -> Parts | None:
    """Open a JPEG 2000 file of more than ``max_pixels`` to read its parts.

    Returns:
        Parts | None: None if it must be decoded whole.
    """
    head = _read_head(first_bytes(data, 2**16))
    pixel_bytes = 2 * len(head.bits)
    if count_pixels(head.height, head.width, pixel_bytes) <= (
            settings.max_pixels) or not find_rasterio():
        return None
    parts = open_parts(stack, data, lambda pixels, missing, file: RawImage(
        pixels, _has_alpha(file)))
    return parts._replace(
        orientation=head.orientation, pixel_bytes=pixel_bytes)


def _has_alpha(file: Any) -> bool:
    return file.colorinterp[-1].name == 'alpha'
