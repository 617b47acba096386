"""What an image is, by its header alone."""
import importlib.util
import io
from typing import NamedTuple, Tuple

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from .plain import ALPHA_MODES
from .sniffing import (
    is_deep_raster,
    is_dicom,
    is_jpeg,
    is_numpy,
    is_plain,
    is_png,
    is_tiff,
)

_GREY_MODES = ('1', 'L', 'LA', 'La')
# Of PNG's colour types.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


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
        return _peek_dicom(data)
    if is_deep_raster(data):
        if is_png(data):
            return _PNG_CHANNELS[data[25]], 'uint16'
        return (3 if data[1:2] in b'36' else 1), 'uint16'
    with Image.open(io.BytesIO(data)) as opened:
        alpha = opened.mode in ALPHA_MODES or 'transparency' in opened.info
        return (1 if opened.mode in _GREY_MODES else 3) + alpha, 'uint8'


def _peek_dicom(data: bytes) -> Tuple[int, str]:
    if importlib.util.find_spec('pydicom') is None:
        return 1, 'DICOM'
    import pydicom  # of setup.cfg's extra='dicom'
    file = pydicom.dcmread(
        io.BytesIO(data), force=True, stop_before_pixels=True)
    signed = 'int' if file.PixelRepresentation else 'uint'
    return (int(file.get('SamplesPerPixel', 1))
            * int(file.get('NumberOfFrames') or 1),
            f'{signed}{file.BitsAllocated}')
