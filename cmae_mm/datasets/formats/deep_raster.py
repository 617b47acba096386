"""PNG and PNM files of more than 8 bits a channel, through OpenCV.

Pillow reads these with 8 bits a channel where they are in colour, and scales
grey ones.
"""
import io

import cv2
import numpy as np
from PIL import Image

from .plain import stand_upright
from .raw_image import RawImage, UndecodableImage, check_size
from .sniffing import is_png

_ORIENTATION = 0x0112
# Of IHDR's colour types: grey and alpha.
_GREY_ALPHA, _GREY = 4, 0


def read_deep_raster(data: bytes) -> RawImage:
    """Read a PNG or PNM file of 16 bits a channel.

    Returns:
        RawImage: uint16, of 1 to 4 channels.
    """
    with Image.open(io.BytesIO(data)) as file:  # reads the header alone
        check_size(file.height, file.width, 8)
        orientation = file.getexif().get(_ORIENTATION, 1)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise UndecodableImage('OpenCV cannot decode it')
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    channels = pixels.shape[2]
    if is_png(data) and data[25] in (_GREY, _GREY_ALPHA) and channels > 1:
        # OpenCV repeats grey beside alpha.
        pixels = pixels[..., [0, -1]]
    elif channels >= 3:
        pixels = pixels[..., [2, 1, 0, 3][:channels]]
    return RawImage(
        stand_upright(pixels, orientation), alpha=pixels.shape[2] in (2, 4))
