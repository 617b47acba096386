"""Arrays of ``np.save``."""
import io

import numpy as np

from ..image_settings import ImageSettings
from .axes import arrange
from .raw_image import RawImage, UndecodableImage, check_size


def read_numpy(data: bytes, settings: ImageSettings) -> RawImage:
    """Read an array as an image; nothing in the file is executed.

    Args:
        data (bytes): The file, an array (H, W), (H, W, C) or (C, H, W); see
            :func:`~cmae_mm.datasets.formats.axes.arrange`.
        settings (ImageSettings): ``channels`` and ``bands`` are looked at.

    Returns:
        RawImage: The array.
    """
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim < 2 or 0 in array.shape:
        raise UndecodableImage(f'an array of shape {array.shape} is no image')
    pixels = arrange(array, settings)
    height, width, channels = pixels.shape
    check_size(height, width, channels * pixels.itemsize)
    return RawImage(pixels)
