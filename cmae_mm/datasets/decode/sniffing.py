"""What kind of file some bytes are, by their first ones."""
import io
import re

import tifffile

_PNM = re.compile(rb'P[2356](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+'
                  rb'(?:\s+|#[^\n]*\n)+(\d+)')
_ALPHA = (1, 2)  # ExtraSamples: associated or not
_NODATA = 42113


def is_jpeg(data: bytes) -> bool:
    """Say whether it is a JPEG file."""
    return data[:3] == b'\xff\xd8\xff'


def is_png(data: bytes) -> bool:
    """Say whether it is a PNG file."""
    return data[:8] == b'\x89PNG\r\n\x1a\n'


def is_tiff(data: bytes) -> bool:
    """Say whether it is a TIFF or BigTIFF file."""
    return data[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def is_numpy(data: bytes) -> bool:
    """Say whether it is an array of ``np.save``."""
    return data[:6] == b'\x93NUMPY'


def is_dicom(data: bytes, name: str = '') -> bool:
    """Say whether it is a DICOM file, by its mark or its name."""
    return data[128:132] == b'DICM' or name.lower().endswith(
        ('.dcm', '.dicom'))


def is_deep_raster(data: bytes) -> bool:
    """Say whether it is a PNG or PNM file of more than 8 bits a channel."""
    if is_png(data):
        return data[24:25] > b'\x08'
    match = _PNM.match(data[:1000])
    return match is not None and int(match[1]) > 255


def is_animated(data: bytes) -> bool:
    """Say whether a GIF, WebP or PNG file has several frames."""
    if is_jpeg(data):
        return False
    if data[:4] == b'GIF8':
        return data.count(b'\x21\xf9\x04') > 1  # controls of a frame
    if data[:4] == b'RIFF' and data[8:16] == b'WEBPVP8X':
        return bool(data[20] & 2)
    return is_png(data) and data.find(b'acTL', 0, data.find(b'IDAT')) > 0


def is_plain(data: bytes, name: str = '') -> bool:
    """Say whether an image has up to 8 bits a channel, grey or in colour.

    Such an image, with or without alpha, by a palette or in CMYK, is what
    ordinary decoders turn into 8-bit colour without loss.

    Args:
        data (bytes): The file; what is no image counts as plain, since it is
            the ordinary decoder that shall say so.
        name (str): Its name. Defaults to ''.
    """
    if is_jpeg(data):
        return True
    if is_tiff(data):
        return _is_plain_tiff(data)
    return not (is_numpy(data) or is_dicom(data, name)
                or is_deep_raster(data))


def _is_plain_tiff(data: bytes) -> bool:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if len(file.pages) != 1:
                return False
            page = file.pages.first
            extra = page.extrasamples
            colours = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}.get(
                int(page.photometric))
            return (
                page.bitspersample <= 8 and int(page.sampleformat) == 1
                and page.imagedepth == 1 and colours is not None
                and page.samplesperpixel == colours + len(extra)
                and (not extra or len(extra) == 1 and extra[0] in _ALPHA)
                and _NODATA not in page.tags)
    # Broken: the decoder shall say how.
    except Exception:
        return True
