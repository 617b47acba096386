"""The crop of every evaluation, of a single image."""
from typing import Any, Dict

import numpy as np
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..evaluation.data import eval_pipeline


class CentreCrop:
    """The crop of every evaluation: the short side resized, the centre cut.

    Args:
        size (int): Side S of the crop in pixels.
    """

    def __init__(self, size: int) -> None:
        self._transforms = [
            TRANSFORMS.build(t) for t in eval_pipeline(size)[1:]
        ]

    def __call__(self, image: np.ndarray) -> Tensor:
        """Resize and crop an image, (H, W, 3), BGR; gives RGB, (3, S, S)."""
        results: Dict[str, Any] = dict(
            img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        for transform in self._transforms:
            results = transform(results)
        return results['inputs'][[2, 1, 0]]
