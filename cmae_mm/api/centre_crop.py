"""The crop of every evaluation, of a single image."""
from typing import Any, Dict, Mapping, Optional

import numpy as np
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..datasets.decode import ImageSettings, UndecodableImage
from ..evaluation.data import eval_pipeline


class CentreCrop:
    """The crop of every evaluation: the short side resized, the centre cut.

    Args:
        size (int): Side S of the crop in pixels.
        images (Mapping[str, Any], optional): How images are decoded, arguments
            of ``LoadImage``. Defaults to None, colours of 8 bits.

    Attributes:
        settings (ImageSettings): What images are once they are decoded.
    """

    def __init__(self,
                 size: int,
                 images: Optional[Mapping[str, Any]] = None) -> None:
        self._loading, *self._transforms = [
            TRANSFORMS.build(t) for t in eval_pipeline(size, images=images)
        ]
        self.settings: ImageSettings = self._loading.settings

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Decode an image file as the training's images were.

        Args:
            data (bytes): The file.
            name (str): For the error.

        Returns:
            np.ndarray: (H, W, C); three channels of uint8 are in BGR.

        Raises:
            ValueError: If it is empty or cannot be decoded, or would lose
                something.
        """
        if not data:
            raise ValueError(f'{name} cannot be decoded: it is empty')
        try:
            return self._loading.decode(data, name)
        # Without the decoder's words, which may differ from run to run.
        except UndecodableImage as error:
            raise ValueError(f'{name} cannot be decoded') from error

    def __call__(self, image: np.ndarray) -> Tensor:
        """Resize and crop an image, (H, W, C), as :meth:`decode` gives it.

        Returns:
            Tensor: (C, S, S), of the image's type, colours as RGB.
        """
        results: Dict[str, Any] = dict(
            img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        for transform in self._transforms:
            results = transform(results)
        inputs = results['inputs']
        return inputs[[2, 1, 0]] if self.settings.is_bgr else inputs
