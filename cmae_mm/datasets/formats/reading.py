"""Reading an image file of any kind, as it is."""
from typing import Optional

from ...dependencies import MissingLibrary
from ..image_settings import ImageSettings
from .deep_raster import read_deep_raster
from .dicom import read_dicom
from .numpy_file import read_numpy
from .plain import read_plain
from .raw_image import RawImage, UndecodableImage, UnfitImage
from .sniffing import is_deep_raster, is_dicom, is_numpy, is_plain, is_tiff
from .tiff import read_tiff


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
            :func:`~cmae_mm.datasets.decoding.decode_image`.

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
