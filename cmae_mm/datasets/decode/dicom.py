"""DICOM files; need setup.cfg's extra='dicom'."""
import importlib.util
import io
from typing import Any, Optional, Tuple

import numpy as np

from ...dependencies import MissingLibrary
from ...packaged import install_command
from .arrays import arrange_pages
from .raw_image import RawImage, UndecodableImage, UnfitImage, check_size
from .settings import ImageSettings


def read_dicom(data: bytes, settings: ImageSettings) -> RawImage:
    """Read a DICOM image in the units of its modality.

    The rescaling of the file (Hounsfield units, for instance) is applied.
    What is white where values are low (MONOCHROME1) is turned round. A window
    is applied only where ``window`` asks for it.

    Args:
        data (bytes): The file.
        settings (ImageSettings): ``window``, ``pages`` and ``fill`` are
            looked at; DICOM's padding counts as missing where ``fill`` is
            given.

    Returns:
        RawImage: Of whole numbers where rescaling leaves these, and float64
        otherwise.

    Raises:
        MissingLibrary: If pydicom, or what it needs for this file's
            compression, is not installed.
        UnfitImage: If it has several frames and nothing says what these are,
            or no window of its own where that is asked for.
    """
    if importlib.util.find_spec('pydicom') is None:
        raise MissingLibrary(
            'is a DICOM file, which pydicom reads: install it with '
            f'`{install_command("dicom")}`')
    import pydicom
    file = pydicom.dcmread(io.BytesIO(data), force=True)
    if 'PixelData' not in file:
        raise UndecodableImage('it is a DICOM file without an image')
    frames = int(file.get('NumberOfFrames') or 1)
    samples = int(file.get('SamplesPerPixel', 1))
    check_size(file.Rows, file.Columns, frames * samples * 2)
    stored = arrange_pages(
        _decode(file).reshape(frames, file.Rows, file.Columns, samples),
        'TYXS', 'frames', settings.pages)
    kind = str(file.get('PhotometricInterpretation', ''))
    if kind == 'PALETTE COLOR':
        from pydicom.pixels import apply_color_lut
        return RawImage(apply_color_lut(stored[..., 0], file))
    if samples > 1:
        return RawImage(stored)
    missing = _find_padding(stored, file) if (
        settings.fill is not None) else None
    pixels = _rescale(stored, file)
    turned = kind == 'MONOCHROME1'
    if settings.window is not None:
        pixels = _see_through(pixels, file, settings.window)
        return RawImage(1 - pixels if turned else pixels, False, missing, True)
    if turned:
        ends = _rescale(_stored_range(file, stored.dtype), file)
        pixels = ends.sum(dtype=pixels.dtype) - pixels
    return RawImage(pixels, missing=missing)


def _decode(file: Any) -> np.ndarray:
    try:
        return file.pixel_array
    except (ImportError, NotImplementedError, RuntimeError) as error:
        text = ' '.join(str(error).split())
        if 'missing' not in text and 'required' not in text:
            raise
        raise MissingLibrary(
            'is compressed in a way that pydicom reads with another library: '
            f"install it with `pip install 'pylibjpeg[all]'` ({text})"
        ) from error


def _rescale(stored: np.ndarray, file: Any) -> np.ndarray:
    """Apply the file's rescaling, in whole numbers where these stay whole."""
    from pydicom.pixels import apply_modality_lut
    slope = float(file.get('RescaleSlope', 1))
    intercept = float(file.get('RescaleIntercept', 0))
    if 'ModalityLUTSequence' not in file and slope % 1 == intercept % 1 == 0:
        if (slope, intercept) == (1, 0):
            return stored
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return apply_modality_lut(stored, file)


def _stored_range(file: Any, dtype: np.dtype) -> np.ndarray:
    """Give the lowest and highest value that the file's bits can have."""
    bits = int(file.BitsStored)
    if file.PixelRepresentation:
        return np.array([-2**(bits - 1), 2**(bits - 1) - 1]).astype(dtype)
    return np.array([0, 2**bits - 1]).astype(dtype)


def _see_through(pixels: np.ndarray, file: Any, window: Any) -> np.ndarray:
    """Apply a window, DICOM PS3.3 C.11.2, to shares from 0 to 1."""
    function = 'LINEAR'
    if window == 'file':
        if 'VOILUTSequence' in file:
            from pydicom.pixels import apply_voi
            bits = file.VOILUTSequence[0].LUTDescriptor[2]
            return apply_voi(pixels, file) / (2.**bits - 1)
        found = _own_window(file)
        if found is None:
            raise UnfitImage(
                "has no window of its own, which window='file' asks for; give "
                'window=(centre, width), or leave window out and set '
                "dtype='float32'")
        window = found
        function = str(file.get('VOILUTFunction') or 'LINEAR')
    centre, width = window
    values = pixels.astype(np.float64)
    if function == 'SIGMOID':
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == 'LINEAR':
        # From the first to the last of `width` whole numbers.
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return ((values - centre) / width + 0.5).clip(0, 1)


def _own_window(file: Any) -> Optional[Tuple[float, float]]:
    """Find the first window that a file names."""
    found = []
    for name in ('WindowCenter', 'WindowWidth'):
        value = file.get(name)
        if value is None:
            return None
        several = value if hasattr(value, '__len__') else [value]
        if not len(several):
            return None
        found.append(float(several[0]))
    return found[0], found[1]


def _find_padding(stored: np.ndarray, file: Any) -> Optional[np.ndarray]:
    """Find the pixels that only pad the image."""
    value = file.get('PixelPaddingValue')
    if value is None:
        return None
    limit = file.get('PixelPaddingRangeLimit', value)
    low, high = sorted((int(value), int(limit)))
    return (stored >= low) & (stored <= high)


def peek_dicom(data: bytes) -> Tuple[int, str]:
    """Read the number of channels, frames included, and the type of values.

    Args:
        data (bytes): The file; without pydicom its type is 'DICOM'.
    """
    if importlib.util.find_spec('pydicom') is None:
        return 1, 'DICOM'
    import pydicom
    file = pydicom.dcmread(
        io.BytesIO(data), force=True, stop_before_pixels=True)
    signed = 'int' if file.PixelRepresentation else 'uint'
    return (int(file.get('SamplesPerPixel', 1))
            * int(file.get('NumberOfFrames') or 1),
            f'{signed}{file.BitsAllocated}')
