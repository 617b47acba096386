"""Image files of all kinds, made by the libraries' own writers."""
import io

import cv2
import numpy as np
import tifffile
from PIL import Image


def noise(shape, dtype='uint16', high=4096, seed=0):
    """Random values below a bound, of any type."""
    values = np.random.default_rng(seed).integers(0, high, shape)
    return values.astype(dtype)


def tiff(array, **kwargs):
    """Let tifffile write an array (H, W, C), pixel by pixel, or planar."""
    file = io.BytesIO()
    if array.ndim == 3 and not kwargs:
        kwargs = dict(photometric='minisblack', planarconfig='contig')
    tifffile.imwrite(file, array, **kwargs)
    return file.getvalue()


def planar(array):
    """Let tifffile write a TIFF of one plane after the other."""
    return tiff(np.moveaxis(array, 2, 0).copy(), photometric='minisblack',
                planarconfig='separate')


def opencv(array, ending):
    """Let OpenCV write an image whose channels are red, green, blue."""
    if array.ndim == 3 and array.shape[2] >= 3:
        array = array[..., [2, 1, 0, 3][:array.shape[2]]]
    done, data = cv2.imencode(ending, np.ascontiguousarray(array))
    assert done
    return data.tobytes()


def pillow(array, kind, **kwargs):
    """Let Pillow write an image."""
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **kwargs)
    return file.getvalue()


def numpy(array):
    """Let numpy write an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
