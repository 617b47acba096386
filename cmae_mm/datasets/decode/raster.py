"""Decoding of JPEG, PNG, WebP, GIF, AVIF, HEIF, JPEG XL, BMP and PNM.

JPEG files are decoded by libjpeg-turbo, CMYK JPEG and all other formats by
Pillow and its plugins. Other libraries decode files with more than 8 bits,
which Pillow reduces.
"""
import importlib
import importlib.util
import io
import math
import threading
import zlib
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ...dependencies import MissingLibrary
from .image import (PNM_HEADER, ImageSettings, RawImage, UndecodableImage,
                    apply_orientation, check_size, is_deep_png, is_deep_pnm,
                    is_jpeg)

_ORIENTATION = 0x0112
# Markers of JPEG: the start of a scan, the end.
_SCAN, _END = 0xda, b'\xff\xd9'
# Beginnings of segments that may hold an orientation.
_EXIF, _XMP = b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0'
# Chunks of PNG that may contain an orientation.
_PNG_TEXTS = {b'eXIf', b'tEXt', b'zTXt', b'iTXt'}
# Formats that Pillow decodes without loss if they have 8 bits.
_FORMATS = ('JPEG', 'MPO', 'PNG', 'BMP', 'DIB', 'GIF', 'PPM', 'TIFF', 'WEBP',
            'JPEG2000', 'AVIF', 'HEIF', 'JXL')
# Plugins of Pillow: module and package.
PLUGINS = dict(
    HEIF=('pillow_heif', 'pillow-heif'),
    JXL=('pillow_jxl', 'pillow-jxl-plugin'),
    AVIF=('pillow_avif', 'pillow-avif-plugin'))
# Brands of files in the format of ISO media.
_BRANDS = {b'avif': 'AVIF', b'avis': 'AVIF', b'mif1': 'HEIF', b'msf1': 'HEIF',
           **dict.fromkeys((b'heic', b'heix', b'heim', b'heis', b'hevc',
                            b'hevx', b'hevm', b'hevs'), 'HEIF')}
_JXL_RATIOS = (0, 1, 6 / 5, 4 / 3, 3 / 2, 16 / 9, 5 / 4, 2)
# Pillow's limit applies to the whole process.
_pillow_lock = threading.Lock()
_GREY_MODES = ('1', 'L', 'LA', 'La')
_ALPHA_MODES = ('LA', 'La', 'PA', 'RGBA', 'RGBa')


def read_raster(data: bytes, settings: ImageSettings,
                shrink_to: int | None = None) -> RawImage:
    """Read an image file with all its channels, upright.

    Args:
        data (bytes): The file.
        settings (ImageSettings): See :func:`from_pillow`.
        shrink_to (int, optional): See
            :func:`~cmae_mm.datasets.decode.decode_image`.

    Returns:
        RawImage: uint8 or uint16, of 1 to 4 channels.
    """
    if is_jpeg(data):
        raw = _read_jpeg(data, settings, shrink_to)
        if raw is None and data[-2:] != _END:
            data = _close_jpeg(data)
            raw = _read_jpeg(data, settings, shrink_to)
        if raw is not None:
            return raw
    if is_deep_pnm(data):
        return RawImage(_read_pnm(data, settings))
    if is_deep_png(data):
        return _read_deep_png(data, settings)
    file = open_image(data, settings)
    bits = 8
    if file.format in ('AVIF', 'HEIF'):
        bits = _iso_bits(data)
    elif file.format == 'JXL':
        bits = _read_jxl_head(data)[2]
    if bits == 8 or file.mode[0] in 'IF':
        return from_pillow(file, settings)
    check_size(settings, file.height, file.width, 8)
    return _read_deep(data, file, bits)


def open_image(data: bytes, settings: ImageSettings) -> Image.Image:
    """Read a file's header through Pillow.

    Raises:
        UndecodableImage: If it is too large, or of an unsupported format.
        MissingLibrary: If a plugin of Pillow is needed that is not installed.
    """
    kind = _modern_kind(data)
    if kind and not has_plugin(kind):
        raise MissingLibrary(
            f'is a file of {kind}, which needs a plugin of Pillow; install it '
            f'with `pip install {PLUGINS[kind][1]}`')
    if kind == 'JXL':  # before its plugin decodes it
        check_size(settings, *_read_jxl_head(data)[:2])
    try:
        file = _open(data)
    except UnidentifiedImageError:
        raise UndecodableImage(
            f'it is a damaged {kind} file' if kind else
            'it is a pointer of Git LFS; `git lfs pull` fetches the image'
            if data.startswith(b'version https://git-lfs') else
            'it is not an image of a known format') from None
    if file.format not in _FORMATS:
        raise UndecodableImage(
            f'{file.format} files are not supported; convert it to PNG or '
            'TIFF')
    check_size(settings, file.height, file.width)
    return file


def _open(data: bytes) -> Image.Image:
    """Read a file's header through Pillow, of images of any size."""
    with _pillow_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _modern_kind(data: bytes) -> str:
    """Return 'AVIF', 'HEIF' or 'JXL' for files of these, else ''."""
    if data[:2] == b'\xff\x0a' or data[4:12] == b'JXL \r\n\x87\n':
        return 'JXL'
    if data[4:8] != b'ftyp':
        return ''
    end = int.from_bytes(data[:4], 'big')
    brands = [data[i:i + 4] for i in (8, *range(16, min(end, 256), 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return 'AVIF' if 'AVIF' in kinds else 'HEIF' if kinds else ''


def has_plugin(kind: str) -> bool:
    """Return whether Pillow reads a format of ``PLUGINS``; load its plugin."""
    Image.init()
    if kind not in Image.OPEN:
        try:
            plugin = importlib.import_module(PLUGINS[kind][0])
        except ImportError:
            return False
        if kind == 'HEIF':
            plugin.register_heif_opener()
    return kind in Image.OPEN


def _iso_bits(data: bytes) -> int:
    """Return the bits of an AVIF or HEIF image's values."""
    place = data.find(b'av1C')
    if place >= 0:
        flags = data[place + 6]
        return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
    place = data.find(b'hvcC')
    return 8 + (data[place + 21] & 7) if place >= 0 else 8


def _read_jxl_head(data: bytes) -> tuple[int, int, int]:
    """Return height, width and bits of a JPEG XL image."""
    start = data.find(b'\xff\x0a')
    bits = int.from_bytes(data[start + 2:start + 34], 'little')

    def read(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def read_side() -> int:
        if is_small:
            return 8 * (read(5) + 1)
        return read((9, 13, 18, 30)[read(2)]) + 1

    is_small = read(1)
    height, ratio = read_side(), read(3)
    width = math.floor(height * _JXL_RATIOS[ratio]) if ratio else read_side()
    if read(1):  # all values are the defaults
        return height, width, 8
    if read(1) and read(3) is not None and (read(1) or read(1) or read(1)):
        raise UndecodableImage('JPEG XL files with previews, animations or '
                               'another display size are not supported')
    if read(1):
        return height, width, 32
    kind = read(2)
    return height, width, (8, 10, 12)[kind] if kind < 3 else 1 + read(6)


def _read_deep(data: bytes, file: Image.Image, bits: int) -> RawImage:
    """Read colours of more than 8 bits in AVIF, HEIF and JPEG XL."""
    pixels: Any = None
    if file.format == 'HEIF':
        plugin = importlib.import_module('pillow_heif')
        pixels = np.asarray(plugin.open_heif(
            io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False))
    elif file.format == 'AVIF':
        pixels = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    elif importlib.util.find_spec('imagecodecs'):
        pixels = importlib.import_module('imagecodecs').jpegxl_decode(data)
    if pixels is None or pixels.dtype == np.uint8:
        raise UndecodableImage(
            f'it has {bits} bits, which Pillow reduces to 8; '
            + ('`pip install imagecodecs` reads it' if file.format == 'JXL'
               else 'convert it to PNG or TIFF of 16 bits'))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    count = pixels.shape[2]
    if file.format == 'AVIF' and count >= 3:
        pixels = pixels[..., [2, 1, 0, 3][:count]]
    return RawImage(apply_orientation(pixels, _orientation(file)),
                    count in (2, 4))


def from_pillow(image: Image.Image, settings: ImageSettings) -> RawImage:
    """Convert a Pillow image of any mode, upright.

    Palettes are converted to their colours. CMYK is kept if four channels are
    configured, otherwise converted to RGB.

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
        apply_orientation(pixels.reshape(*pixels.shape[:2], -1), orientation),
        alpha, is_animated=getattr(image, 'is_animated', False))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or 'transparency' in image.info


def _orientation(image: Image.Image) -> int:
    """Read the orientation from the EXIF or XMP data of a Pillow image."""
    # Of JPEG XL, only a file that was a JPEG file is not upright already.
    if image.format == 'JXL' and not getattr(image, 'jpeg', False):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    # Damaged EXIF data: the image is not rotated, as in viewers.
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _read_jpeg(data: bytes, settings: ImageSettings,
               shrink_to: int | None) -> RawImage | None:
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
        check_size(settings, height // factor, width // factor)
        # Rounded up, as libjpeg does.
        smaller = {} if factor == 1 else dict(
            min_height=-(-height // factor), min_width=-(-width // factor),
            min_factor=factor)
        pixels = simplejpeg.decode_jpeg(data, space, **smaller)
    except UndecodableImage:
        raise
    except ValueError:  # Pillow tolerates harmless errors
        return None
    return RawImage(apply_orientation(pixels, _jpeg_orientation(data)))


def _close_jpeg(data: bytes) -> bytes:
    """Append a missing end marker to a JPEG file complete otherwise."""
    closed = data.rstrip(b'\xff') + _END
    try:
        colours = simplejpeg.decode_jpeg_header(closed)[2]
        # Refuses a file of which more is missing.
        simplejpeg.decode_jpeg(
            closed, 'CMYK' if colours in ('CMYK', 'YCCK') else 'GRAY')
    except ValueError:
        return data
    return closed if _has_all_jpeg_scans(closed) else data


def _has_all_jpeg_scans(data: bytes) -> bool:
    """Return whether the scans of a JPEG file have all bits of all values."""
    place, missing = 2, {(0, 0)}
    while place + 4 < len(data):
        if data[place] != 0xff or data[place + 1] in (0, 0xff, *range(
                0xd0, 0xd8)):  # within a scan
            place = max(data.find(b'\xff', place + 1), 0) or len(data)
            continue
        kind = data[place + 1]
        size = int.from_bytes(data[place + 2:place + 4], 'big')
        if kind in (0xc0, 0xc1, 0xc2):  # the last one is progressive
            missing = {(data[place + 10 + 3 * i], k)
                       for i in range(data[place + 9]) for k in range(64)}
        elif kind == _SCAN:
            count = data[place + 4]
            start = place + 5 + 2 * count
            first, last, low = data[start:start + 3]
            if not low & 15:
                missing -= {(data[place + 5 + 2 * i], k) for i in range(count)
                            for k in range(first, last + 1)}
        place += 2 + size
    return not missing


def _jpeg_orientation(data: bytes) -> int:
    """Read the orientation of a JPEG file, of which many have none."""
    end = 2  # of the segments before the scan
    while data[end:end + 1] == b'\xff' and end + 1 < len(data) and (
            data[end + 1] != _SCAN):
        end += 1 if data[end + 1] == 0xff else 2 + int.from_bytes(
            data[end + 2:end + 4], 'big')
    head = data[:end]
    if _EXIF not in head and _XMP not in head:
        return 1
    try:
        return _orientation(_open(data))
    except Exception:  # of damaged segments, which decoding skips
        return 1


def orientation_of(exif: bytes) -> int:
    """Read the orientation from EXIF data."""
    image = Image.Image()
    image.info = dict(exif=exif)
    return _orientation(image)


def _read_pnm(data: bytes, settings: ImageSettings) -> np.ndarray:
    """Read a PNM file of more than 8 bits; values are kept."""
    header = PNM_HEADER.match(data)
    assert header is not None
    kind, width, height, _ = map(int, header.groups())
    shape = (height, width, 3 if kind in (3, 6) else 1)
    check_size(settings, height, width, 2 * shape[2])
    count = height * width * shape[2]
    if kind in (2, 3):
        values = np.array(data[header.end():].split()[:count], np.uint16)
    else:
        values = np.frombuffer(data, '>u2', count, header.end())
    return values.reshape(shape).astype(np.uint16)


def _read_deep_png(data: bytes, settings: ImageSettings) -> RawImage:
    """Read a PNG file of 16 bits a channel."""
    file = open_image(data, settings)
    check_size(settings, file.height, file.width, 8)
    # libpng warns of optional chunks at each read.
    kept, kinds, place = [data[:8]], set(), 8
    while not data.startswith(b'IEND', place + 4):
        end = place + 12 + int.from_bytes(data[place:place + 4], 'big')
        kinds.add(data[place + 4:place + 8])
        if end > len(data):  # OpenCV prints a message
            raise UndecodableImage('it is cut off')
        if data[place + 4:place + 5].isupper():
            kept.append(data[place:end])
            if zlib.crc32(kept[-1][4:-4]) != int.from_bytes(
                    kept[-1][-4:], 'big'):
                raise UndecodableImage('its checksums are wrong')
        place = end
    kept.append(data[place:])
    pixels = cv2.imdecode(
        np.frombuffer(b''.join(kept), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise UndecodableImage('OpenCV cannot decode it')
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    # OpenCV returns BGR, and repeats grey if there is alpha.
    colours = pixels[..., :1] if data[25] in (0, 4) else pixels[..., 2::-1]
    alpha = pixels[..., -1:] if pixels.shape[2] == 4 else None
    key = file.info.get('transparency')
    if key is not None:
        alpha = (colours != key).any(2, keepdims=True) * np.uint16(65535)
    if alpha is not None:
        colours = np.concatenate([colours, alpha], axis=2)
    orientation = _orientation(file) if kinds & _PNG_TEXTS else 1
    return RawImage(apply_orientation(colours, orientation), alpha is not None)
