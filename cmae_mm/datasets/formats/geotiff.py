"""What rasterio reads of TIFF files; needs setup.cfg's extra='geotiff'."""
import importlib.util
import warnings

import numpy as np

from .raw_image import RawImage


def find_rasterio() -> bool:
    """Say whether rasterio is installed."""
    return importlib.util.find_spec('rasterio') is not None


def read_bands(data: bytes) -> RawImage:
    """Read all bands of a TIFF file, and which pixels its masks leave out.

    Args:
        data (bytes): The file.

    Returns:
        RawImage: Of the file's type; values as stored, without the scale and
        offset that a band may have.
    """
    import rasterio
    from rasterio.enums import MaskFlags
    from rasterio.errors import NotGeoreferencedWarning
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.MemoryFile(data) as memory, memory.open() as file:
            pixels = file.read().transpose(1, 2, 0)
            flags = {flag for band in file.mask_flag_enums for flag in band}
            missing = None
            # Of a mask in the file: neither alpha nor a nodata value.
            if MaskFlags.per_dataset in flags and (
                    MaskFlags.alpha not in flags):
                missing = file.dataset_mask()[..., None] == 0
    return RawImage(np.ascontiguousarray(pixels), missing=missing)
