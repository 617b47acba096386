"""Resizing images of any channels and type along an edge."""
from mmpretrain.datasets import ResizeEdge
from mmpretrain.registry import TRANSFORMS

from ..decode import resize_image


@TRANSFORMS.register_module()
class ResizeImage(ResizeEdge):
    """mmpretrain's ``ResizeEdge`` for images of any channels and type.

    By anti-aliased bicubic interpolation, as Pillow's, which ``ResizeEdge``
    has for colours of 8 bits alone.

    **Required Keys:**

    - img (np.ndarray): (H, W, C), uint8, uint16 or float32.

    **Modified Keys:**

    - img
    - img_shape

    **Added Keys:**

    - scale
    - scale_factor

    Args:
        scale (int): Length of the edge in pixels.
        edge (str): 'short', 'long', 'width' or 'height'. Defaults to 'short'.
    """

    def __init__(self, scale: int, edge: str = 'short') -> None:
        super().__init__(scale, edge)

    def _resize_img(self, results: dict) -> None:
        width, height = results['scale']
        former = results['img'].shape
        results['img'] = resize_image(results['img'], (height, width))
        results['img_shape'] = (height, width)
        results['scale_factor'] = (width / former[1], height / former[0])

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale={self.scale}, '
                f'edge={self.edge!r})')
