"""Decoding of image files, for training and every evaluation."""
import logging
import warnings
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

import numpy as np

from ...dependencies import MissingLibrary
from .convert import convert, read_numpy
from .image import (
    RGB,
    ImageSettings,
    RawImage,
    UndecodableImage,
    UnfitImage,
    is_dicom,
    is_numpy,
    is_tiff,
    log_once,
)
from .raster import read_raster

# Loggers of libraries that report on each file they read.
_LOGGERS = ('tifffile', 'rasterio._env', 'rasterio._err', 'pydicom',
            'PIL.TiffImagePlugin', 'PIL.PngImagePlugin')


def decode_image(data: bytes,
                 shrink_to: Optional[int] = None,
                 settings: ImageSettings = RGB,
                 name: str = 'an image') -> np.ndarray:
    """Decode an image file, upright and without loss.

    By default to 8-bit colours in BGR: grey and palette images become colour,
    and alpha is dropped, which is logged once.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): The shorter side, in pixels, that is enough
            for the caller: JPEG files are decoded at 1/2, 1/4 or 1/8 where
            that leaves as much. Defaults to None, full size.
        settings (ImageSettings): The settings. Defaults to 8-bit colour.
        name (str): The file's name, for errors.

    Returns:
        np.ndarray: (H, W, C), not always contiguous. Three channels of uint8
        are in BGR; all others keep the file's order.

    Raises:
        UndecodableImage: If it cannot be decoded, or is too large.
        UnfitImage: If it would lose something; names the file and the setting
            that accepts it.
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
            'alpha', f'{name} has an alpha channel, which is left out, as in '
            'further images; one channel more (channels=4 for colour) keeps '
            'it.')
    if raw.is_animated:
        log_once(
            'frames', f'{name} is an animation, of which the first frame is '
            'read, as of further ones.')
    return image[..., ::-1] if settings.is_bgr else image


def read_image(data: bytes,
               name: str,
               settings: ImageSettings,
               shrink_to: Optional[int] = None) -> RawImage:
    """Read an image file with all its channels, upright.

    Args:
        data (bytes): The file.
        name (str): Its name, for errors, and to recognise DICOM files without
            their mark.
        settings (ImageSettings): The settings, for files that can be read in
            several ways.
        shrink_to (int, optional): See :func:`decode_image`.

    Returns:
        RawImage: Of the file's type and channels.

    Raises:
        UndecodableImage: If it cannot be read, or is too large.
        UnfitImage: If a setting is needed to read it; names the file.
        MissingLibrary: If an optional library is needed; names the file.
    """
    if not data:
        raise UndecodableImage('it is empty')
    try:
        with _library_messages(name):
            if is_tiff(data):
                from .tiff import read_tiff
                return read_tiff(data, settings)
            if is_numpy(data):
                return read_numpy(data, settings)
            if is_dicom(data, name):
                from .dicom import read_dicom
                return read_dicom(data, settings)
            return read_raster(data, settings, shrink_to)
    except UndecodableImage:
        raise
    except (UnfitImage, MissingLibrary) as error:
        raise type(error)(f'{name} {error}') from error
    # Decoders raise all sorts of errors on broken files.
    except Exception as error:
        raise UndecodableImage(f'{type(error).__name__}: {error}') from error


# Log records of libraries about the current file; None between files.
_logged: Optional[List[Tuple[str, str]]] = None


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
