"""Two windows of one canvas, a few pixels apart."""
from typing import Optional, Sequence

import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmpretrain.registry import TRANSFORMS

from .arguments import check_canvas


@TRANSFORMS.register_module()
class PixelShift(BaseTransform):
    """Cut the online and the target view from one canvas.

    The online view is the window at the canvas's top left corner, the target
    view one of the same size, ``(r_y, r_x)`` pixels away, both drawn
    uniformly from ``[0, max_shift)``. The method augments the target view
    alone in colour. What must be shared (the resized crop, the flip) comes
    before.

    **Required Keys:**

    - img (np.ndarray): The canvas, (H, W, C).

    **Modified Keys:**

    - img (List[np.ndarray]): The online and the target view, (S, S, C) each.
    - img_shape

    **Added Keys:**

    - shift (tuple): ``(r_y, r_x)`` in pixels.

    Args:
        size (int): S, side of both windows in pixels.
        max_shift (int): Bound of the shift in pixels (p in the paper); the
            shift is below it, and 0 switches it off. Defaults to 32.
        canvas_size (int, optional): Side of the canvas in pixels that the
            transforms before make, so that one too small is found when the
            pipeline is built. Defaults to None: only each image is checked.
        target_pipeline (List[dict]): Transforms of the target view. Defaults
            to an empty list, no augmentation.
        online_pipeline (List[dict]): Transforms of the online view, for an
            ablation. Defaults to an empty list, no augmentation.

    Raises:
        ValueError: If an argument is out of range, or the canvas is smaller
            than ``size + max_shift``.
    """

    def __init__(self,
                 size: int,
                 max_shift: int = 32,
                 canvas_size: Optional[int] = None,
                 target_pipeline: Sequence[dict] = (),
                 online_pipeline: Sequence[dict] = ()) -> None:
        super().__init__()
        check_canvas(size + max_shift if canvas_size is None else canvas_size,
                     size, max_shift)
        self.size = size
        self.max_shift = max_shift
        self.canvas_size = canvas_size
        self.target_pipeline, self.online_pipeline = (
            Compose([TRANSFORMS.build(dict(t)) for t in given])
            for given in (target_pipeline, online_pipeline))

    def draw_shift(self) -> tuple:
        """Draw ``(r_y, r_x)``, in pixels, uniformly from [0, max_shift)."""
        shift = np.random.randint(0, max(self.max_shift, 1), size=2)
        return int(shift[0]), int(shift[1])

    def transform(self, results: dict) -> dict:
        """Cut both views.

        Args:
            results (dict): The sample, with the canvas as ``img``.

        Returns:
            dict: The sample, with both views as the list ``img``.
        """
        canvas = results['img']
        check_canvas(min(canvas.shape[:2]), self.size, self.max_shift)
        y, x = self.draw_shift()
        size = self.size
        online = dict(results, img=canvas[:size, :size].copy())
        online = self.online_pipeline(online)
        target = dict(results, img=canvas[y:y + size, x:x + size].copy())
        target = self.target_pipeline(target)
        results['img'] = [online['img'], target['img']]
        results['img_shape'] = (size, size)
        results['shift'] = (y, x)
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(size={self.size}, '
                f'max_shift={self.max_shift}, '
                f'canvas_size={self.canvas_size}, '
                f'target_pipeline={self.target_pipeline})')
