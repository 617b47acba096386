"""JPEG, PNG, WebP, BMP and PNM files.

JPEG files are decoded by libjpeg-turbo; CMYK ones and all other formats by
Pillow, except PNG and PNM files of more than 8 bits, which Pillow reduces.
"""
import io
from typing import Optional

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from .image import (
    PNM_HEADER,
    ImageSettings,
    RawImage,
    UndecodableImage,
    check_size,
    is_deep_png,
    is_deep_pnm,
    is_jpeg,
    stand_upright,
)

_ORIENTATION = 0x0112
# Markers of JPEG: segments of EXIF or XMP data, and the start of the scan.
_APP1, _SCAN = 0xe1, 0xda
_EXIF, _XMP = b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0'
# Chunks of PNG that may hold an orientation.
_PNG_TEXTS = {b'eXIf', b'tEXt', b'zTXt', b'iTXt'}
# Formats that Pillow decodes without loss, as far as they have 8 bits.
_FORMATS = ('JPEG', 'MPO', 'PNG', 'BMP', 'DIB', 'GIF', 'PPM', 'TIFF', 'WEBP')
_GREY_MODES = ('1', 'L', 'LA', 'La')
_ALPHA_MODES = ('LA', 'La', 'PA', 'RGBA', 'RGBa')


def read_raster(data: bytes, settings: ImageSettings,
                shrink_to: Optional[int] = None) -> RawImage:
    """Read an image file with all its channels, upright.

    Args:
        data (bytes): The file.
        settings (ImageSettings): See :func:`from_pillow`.
        shrink_to (int, optional): See
            :func:`~cmae_mm.datasets.decode.decode_image`.

    Returns:
        RawImage: uint8 or uint16, of 1 to 4 channels.
    """
    raw = _read_jpeg(data, shrink_to) if is_jpeg(data) else None
    if raw is not None:
        return raw
    if is_deep_pnm(data):
        return RawImage(_read_pnm(data))
    if is_deep_png(data):
        return _read_deep_png(data)
    return from_pillow(open_image(data), settings)


def open_image(data: bytes) -> Image.Image:
    """Read a file's header through Pillow.

    Raises:
        UndecodableImage: If it is too large, or of a format that is not read.
    """
    try:
        file = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UndecodableImage(
            'HEIF files are not read; convert it to PNG or TIFF'
            if data[4:8] == b'ftyp' else
            'it is no image of a known format') from None
    if file.format not in _FORMATS:
        raise UndecodableImage(
            f'{file.format} files are not read; convert it to PNG or TIFF')
    check_size(file.height, file.width)
    return file


def from_pillow(image: Image.Image, settings: ImageSettings) -> RawImage:
    """Convert a Pillow image of any mode, upright.

    Palettes become their colours. CMYK is kept where four channels are
    wanted, and otherwise becomes RGB.

    Args:
        image (PIL.Image.Image): The image; it is loaded.
        settings (ImageSettings): ``channels`` and ``bands`` are read.

    Returns:
        RawImage: Of 1 to 4 channels; uint8, or the mode's own type.
    """
    image.load()  # of TIFF files Pillow applies the orientation here
    orientation = _orientation(image)
    alpha = _has_alpha(image)
    if image.mode in ('LAB', 'HSV'):
        raise UndecodableImage(f'its colours are {image.mode}; convert it to '
                               'RGB')
    if image.mode[0] in 'IF':
        alpha = False
        pixels = np.asarray(image)
        if image.mode == 'I' and pixels.min() >= 0 and pixels.max() < 2**16:
            pixels = pixels.astype(np.uint16)
    else:
        mode = 'LA' if alpha else 'L'
        if image.mode not in _GREY_MODES:
            mode = 'RGBA' if alpha else 'RGB'
        if (image.mode, settings.channels, settings.bands) == (
                'CMYK', 4, None):
            mode = 'CMYK'
        pixels = np.asarray(
            image if image.mode == mode else image.convert(mode))
    return RawImage(
        stand_upright(pixels.reshape(*pixels.shape[:2], -1), orientation),
        alpha, is_animated=getattr(image, 'is_animated', False))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or 'transparency' in image.info


def _orientation(image: Image.Image) -> int:
    """Read the orientation from a Pillow image's EXIF, or else XMP, data."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    # Damaged EXIF data: the image is shown as it is, as viewers do.
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _read_jpeg(data: bytes, shrink_to: Optional[int]) -> Optional[RawImage]:
    """Read a JPEG file of grey or colour; None for CMYK and damaged ones."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        space = dict(CMYK=None, YCCK=None, Gray='GRAY').get(colours, 'RGB')
        if space is None:
            return None
        factor = 1
        while shrink_to is not None and factor < 8 and (
                min(height, width) // (2 * factor) >= shrink_to):
            factor *= 2
        check_size(height // factor, width // factor)
        # Rounded up, as libjpeg does.
        smaller = {} if factor == 1 else dict(
            min_height=-(-height // factor), min_width=-(-width // factor),
            min_factor=factor)
        pixels = simplejpeg.decode_jpeg(data, space, **smaller)
    except UndecodableImage:
        raise
    except ValueError:  # Pillow tells the harmless faults from others
        return None
    return RawImage(stand_upright(pixels, _jpeg_orientation(data)))


def _jpeg_orientation(data: bytes) -> int:
    """Read the orientation in the segments before a JPEG file's scan."""
    exif, xmp, place = b'', b'', 2
    while place + 4 < len(data) and data[place] == 0xff and (
            data[place + 1] != _SCAN):
        if data[place + 1] == 0xff:  # fills
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2:place + 4], 'big')
        body = data[place + 4:end] if data[place + 1] == _APP1 else b''
        if body.startswith(_EXIF):
            exif += body[len(_EXIF) if exif else 0:]
        elif body.startswith(_XMP):
            xmp = body
        place = end
    if not exif and not xmp:
        return 1
    image = Image.Image()
    image.info = {'XML:com.adobe.xmp': xmp.decode('utf-8', 'replace')}
    if exif:
        image.info['exif'] = exif
    return _orientation(image)


def _read_pnm(data: bytes) -> np.ndarray:
    """Read a PNM file of more than 8 bits; values are kept."""
    header = PNM_HEADER.match(data)
    assert header is not None
    kind, width, height, _ = map(int, header.groups())
    shape = (height, width, 3 if kind in (3, 6) else 1)
    check_size(height, width, 2 * shape[2])
    count = height * width * shape[2]
    if kind in (2, 3):
        values = np.array(data[header.end():].split()[:count], np.uint16)
    else:
        values = np.frombuffer(data, '>u2', count, header.end())
    return values.reshape(shape).astype(np.uint16)


def _read_deep_png(data: bytes) -> RawImage:
    """Read a PNG file of 16 bits a channel."""
    file = open_image(data)
    check_size(file.height, file.width, 8)
    # libpng warns of optional chunks at each read.
    kept, kinds, place = [data[:8]], set(), 8
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place:place + 4], 'big')
        kinds.add(data[place + 4:place + 8])
        if data[place + 4:place + 5].isupper():
            kept.append(data[place:end])
        place = end
    pixels = cv2.imdecode(
        np.frombuffer(b''.join(kept), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise UndecodableImage('OpenCV cannot decode it')
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    # OpenCV gives BGR, and repeats grey beside alpha.
    colours = pixels[..., :1] if data[25] in (0, 4) else pixels[..., 2::-1]
    alpha = pixels[..., -1:] if pixels.shape[2] == 4 else None
    key = file.info.get('transparency')
    if key is not None:
        alpha = (colours != key).any(2, keepdims=True) * np.uint16(65535)
    if alpha is not None:
        colours = np.concatenate([colours, alpha], axis=2)
    orientation = _orientation(file) if kinds & _PNG_TEXTS else 1
    return RawImage(stand_upright(colours, orientation), alpha is not None)
