"""The kind of a file, from its first bytes."""
import re

# Width, height and maximum of a PNM file, and the one blank behind them.
PNM_HEADER = re.compile(rb'P([2356])' + rb'(?:\s+|#[^\n]*\n)+(\d+)' * 3
                        + rb'\s')


def is_jpeg(data: bytes) -> bool:
    """Whether it is a JPEG file."""
    return data[:3] == b'\xff\xd8\xff'


def is_png(data: bytes) -> bool:
    """Whether it is a PNG file."""
    return data[:8] == b'\x89PNG\r\n\x1a\n'


def is_tiff(data: bytes) -> bool:
    """Whether it is a TIFF or BigTIFF file."""
    return data[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def is_numpy(data: bytes) -> bool:
    """Whether it is an array of ``np.save``."""
    return data[:6] == b'\x93NUMPY'


def is_dicom(data: bytes, name: str = '') -> bool:
    """Whether it is a DICOM file, by its mark or its name."""
    return data[128:132] == b'DICM' or name.lower().endswith(
        ('.dcm', '.dicom'))


def is_deep_png(data: bytes) -> bool:
    """Whether it is a PNG file of 16 bits a channel."""
    return is_png(data) and data[24:25] > b'\x08'


def is_deep_pnm(data: bytes) -> bool:
    """Whether it is a PNM file of more than 8 bits a channel."""
    match = PNM_HEADER.match(data[:1000])
    return match is not None and int(match[4]) > 255
