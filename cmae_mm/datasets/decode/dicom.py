"""Decoding of DICOM files with pydicom (extra='dicom')."""
import importlib.util
import io
from typing import Any

import numpy as np

from ...dependencies import MissingLibrary, install_command
from .convert import fill_missing, pages_to_hwc, refuse_pages
from .image import (ImageSettings, RawImage, UndecodableImage, UnfitImage,
                    check_size)

_PIXELS = ('PixelData', 'FloatPixelData', 'DoubleFloatPixelData')
_GREY = ('MONOCHROME1', 'MONOCHROME2')
_PALETTE = 'PALETTE COLOR'
# Colours that pydicom decodes to RGB.
_COLOURS = ('RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')


def read_dicom(data: bytes, settings: ImageSettings) -> RawImage:
    """Read a DICOM image in the units of its modality.

    Each frame is rescaled, for example to Hounsfield units, by the slope and
    intercept of its functional groups or of the file. MONOCHROME1 (low values
    are white) is inverted. A window is applied only if ``window`` is set.

    Args:
        data (bytes): The file.
        settings (ImageSettings): ``window``, ``pages`` and ``fill`` are read;
            DICOM's padding counts as missing if ``fill`` is set.

    Returns:
        RawImage: Integers if rescaling keeps them, otherwise float64.

    Raises:
        MissingLibrary: If pydicom, or a library for the file's compression,
            is not installed.
        UndecodableImage: If it has no image, or one of an unsupported kind.
        UnfitImage: If a setting is needed to read it.
    """
    file = _open(data)
    count = int(file.get('NumberOfFrames') or 1)
    samples = int(file.get('SamplesPerPixel') or 1)
    kind = str(file.get('PhotometricInterpretation', ''))
    _check_kind(file, kind)
    if count > 1 and settings.pages is None:
        refuse_pages(count, 'frames')
    count = 1 if settings.pages == 'first' else count
    check_size(settings, file.Rows, file.Columns, count * samples * 2)
    stored = _decode(file, 0 if settings.pages == 'first' else None).reshape(
        count, file.Rows, file.Columns, samples)
    if kind == _PALETTE:
        from pydicom.pixels import apply_color_lut
        stored = apply_color_lut(stored[..., 0], file)
    if kind not in _GREY:
        return RawImage(pages_to_hwc(stored, 'TYXS', 'frames', 'channels'))
    frames, masks = zip(*(_read_frame(file, number, stored[number], settings)
                          for number in range(count)))
    return RawImage(
        np.concatenate(frames, axis=2),
        missing=None if masks[0] is None else np.concatenate(masks, axis=2),
        is_unit_range=settings.window is not None)


def _open(data: bytes, **kwargs: Any) -> Any:
    if importlib.util.find_spec('pydicom') is None:
        raise MissingLibrary(
            'is a DICOM file, which needs pydicom; install it with '
            f'`{install_command("dicom")}`')
    import pydicom
    return pydicom.dcmread(io.BytesIO(data), force=True, **kwargs)


def _check_kind(file: Any, kind: str) -> None:
    if not any(name in file for name in _PIXELS):
        raise UndecodableImage('it is a DICOM file without an image')
    if kind not in (*_GREY, *_COLOURS, _PALETTE):
        raise UndecodableImage(f'its colours, {kind!r}, are not supported')
    bits = file.get('BitsStored')
    if bits and file.get('HighBit', bits - 1) != bits - 1:
        raise UndecodableImage(
            f'its {bits} stored bits end at bit {file.HighBit} instead of '
            f'{bits - 1}')


def _decode(file: Any, index: int | None) -> np.ndarray:
    from pydicom.pixels import pixel_array
    try:
        return pixel_array(file, index=index)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        text = ' '.join(str(error).split())
        # Pillow is the only decoder without pylibjpeg, for 8 bits.
        if not any(word in text for word in (
                'missing', 'required', 'Pillow does not support')):
            raise
        raise MissingLibrary(
            'has a compression that needs another library; install it with '
            f"`pip install 'pylibjpeg[all]'` ({text})"
        ) from error


def _read_frame(file: Any, number: int, stored: np.ndarray,
                settings: ImageSettings
                ) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values of a frame or shares of its window, and a mask."""
    fill, window = settings.fill, settings.window
    missing = None if fill is None else _find_padding(stored, file)
    inverted = file.PhotometricInterpretation == 'MONOCHROME1'
    values = _rescale(stored, file, number, settings)
    if window is not None:
        # A number is in the file's units, the mean may be of shares.
        if missing is not None and fill not in (None, 'mean'):
            values = fill_missing(values, missing, fill)
            missing = np.zeros_like(missing)
        values = _apply_window(values, file, number, window)
        return 1 - values if inverted else values, missing
    if inverted:
        ends = _rescale(_stored_range(file, stored), file, number, settings)
        values = ends.sum(dtype=values.dtype) - values
    return values, missing


def _groups(file: Any, number: int, name: str) -> list[Any]:
    """Find a sequence in a frame's own or the shared functional groups."""
    own = file.get('PerFrameFunctionalGroupsSequence') or []
    shared = file.get('SharedFunctionalGroupsSequence') or []
    for group in (*own[number:number + 1], *shared[:1]):
        if group.get(name):
            return list(group.get(name))
    return list(file.get(name) or [])


def _rescale(stored: np.ndarray, file: Any, number: int,
             settings: ImageSettings) -> np.ndarray:
    """Apply a frame's rescaling, in integers if they stay integers."""
    own = _groups(file, number, 'PixelValueTransformationSequence')
    source = own[0] if own else file
    prefix = 'Rescale'
    if 'ModalityLUTSequence' in source:
        from pydicom.pixels import apply_modality_lut
        return apply_modality_lut(stored, source)
    maps = _groups(file, number, 'RealWorldValueMappingSequence')
    # A window is in the units of the rescaling only.
    if (maps and 'RescaleSlope' not in source and settings.window is None):
        if len(maps) > 1 or 'RealWorldValueSlope' not in maps[0]:
            raise UnfitImage(
                'has several real world value mappings or a table, which are '
                'not supported; convert it, or set window')
        source, prefix = maps[0], 'RealWorldValue'
    slope, intercept = (
        float(given) if (given := source.get(prefix + name)) is not None
        else default for name, default in (('Slope', 1.), ('Intercept', 0.)))
    slope *= float(file.get('DoseGridScaling') or 1)
    if (slope, intercept) == (1, 0):
        return stored
    if slope % 1 == intercept % 1 == 0 and stored.dtype.kind in 'iu':
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored * slope + intercept


def _stored_range(file: Any, stored: np.ndarray) -> np.ndarray:
    """Return the range of the stored bits."""
    if stored.dtype.kind == 'f':
        raise UndecodableImage('it is MONOCHROME1 of floats, without a range')
    half = 2**(int(file.BitsStored) - 1)
    low = -half if file.PixelRepresentation else 0
    return np.array([low, low + 2 * half - 1]).astype(stored.dtype)


def _apply_window(values: np.ndarray, file: Any, number: int,
                  window: Any) -> np.ndarray:
    """Apply a window, DICOM PS3.3 C.11.2, giving shares from 0 to 1."""
    function = 'LINEAR'
    if window == 'file':
        if 'VOILUTSequence' in file:
            from pydicom.pixels import apply_voi
            bits = file.VOILUTSequence[0].LUTDescriptor[2]
            return apply_voi(values, file) / (2.**bits - 1)
        own = _groups(file, number, 'FrameVOILUTSequence')
        source = own[0] if own else file
        # The first one where there are several.
        window = [np.ravel(source.get(name) or [])[:1].astype(float)
                  for name in ('WindowCenter', 'WindowWidth')]
        if not all(map(len, window)) or window[1] <= 0:
            raise UnfitImage(
                "has no window, but window='file' needs one; set "
                'window=(centre, width), or remove window and set '
                "dtype='float32'")
        function = str(source.get('VOILUTFunction') or 'LINEAR')
    centre, width = map(float, window)
    values = values.astype(np.float64)
    if function == 'SIGMOID':
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == 'LINEAR':
        # From the first to the last of `width` whole numbers.
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return ((values - centre) / width + 0.5).clip(0, 1)


def _find_padding(stored: np.ndarray, file: Any) -> np.ndarray | None:
    """Find padding pixels."""
    value = file.get('PixelPaddingValue')
    if value is None:
        return None
    limit = file.get('PixelPaddingRangeLimit', value)
    # In some files they are unsigned although pixels are signed.
    low, high = np.sort(np.array([value, limit]).astype(stored.dtype))
    return (stored >= low) & (stored <= high)
