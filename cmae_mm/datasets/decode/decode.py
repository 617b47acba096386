"""Decoding image files of all kinds, without loss."""
import io
from typing import NamedTuple, Optional, Tuple

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from ...dependencies import MissingLibrary
from ..saying import has_said, say_once
from .arrays import read_numpy
from .convert import fit
from .dicom import peek_dicom, read_dicom
from .raster import (
    ALPHA_MODES,
    decode_plain,
    has_alpha,
    read_deep_raster,
    read_plain,
)
from .raw_image import RawImage, UndecodableImage, UnfitImage
from .settings import RGB, ImageSettings
from .sniffing import (
    is_animated,
    is_deep_raster,
    is_dicom,
    is_jpeg,
    is_numpy,
    is_plain,
    is_png,
    is_tiff,
)
from .tiff import read_tiff

_GREY_MODES = ('1', 'L', 'LA', 'La')
# Of PNG's colour types.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def decode_image(data: bytes,
                 shrink_to: Optional[int] = None,
                 settings: ImageSettings = RGB,
                 name: str = 'an image') -> np.ndarray:
    """Decode an image, upright, without loss of what it holds.

    By default to BGR of 8 bits: grey and palette images become colour, and
    alpha is left out, which is said once. EXIF orientations are applied.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): The caller needs no more than this on the
            shorter side, in pixels: JPEG files are then decoded at 1/2, 1/4
            or 1/8 where that leaves enough. Defaults to None, full size.
        settings (ImageSettings): What the image shall be. Defaults to colour
            of 8 bits.
        name (str): The file's name, for errors.

    Returns:
        np.ndarray: (H, W, C), not always contiguous. Three channels of uint8
        are in BGR; all else keeps the file's order.

    Raises:
        UndecodableImage: If it cannot be decoded, or is too large.
        UnfitImage: If it would lose something; names the file and the setting
            that takes it.
        MissingLibrary: If an optional library is needed; names the file.
    """
    if data and settings.is_plain and is_plain(data, name):
        try:
            image, alpha = decode_plain(data, shrink_to)
        except UndecodableImage:
            raise
        # Decoders raise all sorts of errors on broken files.
        except Exception as error:
            raise UndecodableImage(
                f'{type(error).__name__}: {error}') from error
        if alpha:
            _say_alpha(name)
        _say_frames(data, name)
        return image
    raw = read_image(data, name, settings, shrink_to)
    image = fit(raw, name, settings)
    if raw.alpha and settings.bands is None and (
            image.shape[2] < raw.pixels.shape[2]):
        _say_alpha(name)
    _say_frames(data, name)
    return image[..., ::-1] if settings.is_bgr else image


def say_left_out(data: bytes, name: str) -> None:
    """Say once what another decoder than ours leaves out of a plain image.

    Args:
        data (bytes): The file.
        name (str): Its name.
    """
    if not has_said('alpha') and has_alpha(data):
        _say_alpha(name)
    _say_frames(data, name)


def _say_alpha(name: str) -> None:
    say_once(
        'alpha', f'{name} has an alpha channel, which is left out, as that of '
        'further images; one channel more (channels=4 for colour) keeps it.')


def _say_frames(data: bytes, name: str) -> None:
    if is_animated(data):
        say_once(
            'frames', f'{name} is an animation, of which the first frame is '
            'taken, as of further ones.')


def read_image(data: bytes,
               name: str,
               settings: ImageSettings,
               shrink_to: Optional[int] = None) -> RawImage:
    """Read an image file with all that it holds, upright.

    Args:
        data (bytes): The file.
        name (str): Its name, for errors, and to know DICOM files without
            their mark.
        settings (ImageSettings): What is wanted, where a file can be read in
            several ways.
        shrink_to (int, optional): See
            :func:`~cmae_mm.datasets.decode.decode_image`.

    Returns:
        RawImage: Of the file's type and channels.

    Raises:
        UndecodableImage: If it cannot be read, or is too large.
        UnfitImage: If a setting must say how to read it; names the file.
        MissingLibrary: If an optional library is needed; names the file.
    """
    if not data:
        raise UndecodableImage('it is empty')
    try:
        if is_plain(data, name):
            channels = settings.channels if settings.bands is None else None
            return read_plain(data, channels, shrink_to)
        if is_tiff(data):
            return read_tiff(data, settings)
        if is_numpy(data):
            return read_numpy(data, settings)
        if is_dicom(data, name):
            return read_dicom(data, settings)
        assert is_deep_raster(data)
        return read_deep_raster(data)
    except UndecodableImage:
        raise
    except (UnfitImage, MissingLibrary) as error:
        raise type(error)(f'{name} {error}') from error
    # Decoders raise all sorts of errors on broken files.
    except Exception as error:
        raise UndecodableImage(f'{type(error).__name__}: {error}') from error


class Peek(NamedTuple):
    """What a header says.

    Args:
        channels (int): Number of channels, alpha and pages included.
        dtype (str): Type of the values.
    """

    channels: int
    dtype: str

    def __str__(self) -> str:
        return f'{self.channels} x {self.dtype}'


def peek(data: bytes, name: str) -> Peek:
    """Read what an image is from its header; nothing is decoded.

    Args:
        data (bytes): The file.
        name (str): Its name.

    Raises:
        ValueError: If the header cannot be read.
    """
    try:
        return Peek(*_peek(data, name))
    # Decoders raise all sorts of errors on broken files.
    except Exception as error:
        raise ValueError(f'{type(error).__name__}: {error}') from error


def _peek(data: bytes, name: str) -> Tuple[int, str]:
    if is_jpeg(data):
        colours = simplejpeg.decode_jpeg_header(data)[2]
        return (1 if colours == 'Gray' else 3), 'uint8'
    if is_tiff(data) and not is_plain(data, name):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            page = series.keyframe
            return (series.size // (page.imagelength * page.imagewidth),
                    series.dtype.name)
    if is_numpy(data):
        array = np.load(io.BytesIO(data), allow_pickle=False)
        axes = array.shape
        channels = min(axes[0], axes[-1]) if array.ndim == 3 else 1
        return channels, array.dtype.name
    if is_dicom(data, name):
        return peek_dicom(data)
    if is_deep_raster(data):
        if is_png(data):
            return _PNG_CHANNELS[data[25]], 'uint16'
        return (3 if data[1:2] in b'36' else 1), 'uint16'
    with Image.open(io.BytesIO(data)) as opened:
        alpha = opened.mode in ALPHA_MODES or 'transparency' in opened.info
        return (1 if opened.mode in _GREY_MODES else 3) + alpha, 'uint8'
