from .raw_image import RawImage, UndecodableImage, UnfitImage
from .reading import read_image
from .sniffing import is_plain

__all__ = ['RawImage', 'UndecodableImage', 'UnfitImage', 'is_plain',
           'read_image']
