"""The whole work of a data worker: decode, crop, flip, in the file's type."""
import logging
import math
from typing import Any, Sequence, Tuple

import numpy as np
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS

from ..decode import resize_image
from .arguments import check_canvas, check_range, check_share
from .loading import LoadImageOrSkip, WorkerCounter

# Longer images than this, the longer over the shorter side, are strips.
_STRIP_ASPECT = 3


@TRANSFORMS.register_module()
class LoadCanvas(LoadImageOrSkip):
    """Load an image and make the canvas that both views are cut from.

    One decoding, one random resized crop, one flip: what both views share.
    The views themselves are made of the whole batch, by
    ``TwoViewDataPreprocessor``. Large JPEG files are decoded at 1/2, 1/4 or
    1/8 where that leaves the smallest crop enough pixels. Images smaller than
    the canvas are enlarged and counted.

    Broken images are skipped, see :class:`LoadImageOrSkip`. An image that
    would lose something by the settings is refused by name.

    **Required Keys:**

    - img_path
    - img_key, backend_args (optional): Where an image in a store is.
    - view_seed (optional): Seed of the crop and the flip, see
      ``SeededSampler``.

    **Added Keys:**

    - img (np.ndarray): The canvas, (S, S, C), of the type ``dtype``. Three
      channels of uint8 are in BGR; all others are in the file's order.
    - img_shape, ori_shape, flip

    Args:
        size (int): S, side of the canvas in pixels.
        crop_ratio_range (Sequence[float]): Range of the share of the image's
            area that the crop takes. Defaults to (0.2, 1.0).
        aspect_ratio_range (Sequence[float]): Range of the crop's aspect ratio,
            width over height. Defaults to (3 / 4, 4 / 3).
        flip_prob (float): Probability of a horizontal flip. Defaults to 0.5.
        **kwargs: Arguments of :class:`LoadImageOrSkip` and
            :class:`LoadImage`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 size: int,
                 crop_ratio_range: Sequence[float] = (0.2, 1.0),
                 aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
                 flip_prob: float = 0.5,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_canvas(size, size, 0)
        self.size = size
        self.crop_ratio_range = check_range(
            'crop_ratio_range', crop_ratio_range, most=1)
        self.aspect_ratio_range = check_range(
            'aspect_ratio_range', aspect_ratio_range)
        self.flip_prob = check_share('flip_prob', flip_prob)
        # The shorter side of an image whose smallest crop has S pixels.
        self._shrink_to = math.ceil(size / self.crop_ratio_range[0]**0.5)
        self._enlarged = WorkerCounter()

    @property
    def enlarged(self) -> int:
        """Number of images so far that were smaller than the canvas.

        One that is loaded again counts again.
        """
        return int(self._enlarged)

    def load(self, results: dict) -> dict:
        """Make the canvas of the image at ``img_path``."""
        image = self.read(results, self._shrink_to)
        if min(image.shape[:2]) < self.size:
            self._count_enlarged(results['img_path'], image.shape)
        rng = np.random.default_rng(
            results.get('view_seed', np.random.randint(2**31)))
        y, x, height, width = self.draw_crop(image.shape[0], image.shape[1],
                                             rng)
        flip = bool(rng.random() < self.flip_prob)
        canvas = resize_image(image[y:y + height, x:x + width],
                              (self.size, self.size))
        return dict(
            results,
            img=canvas[:, ::-1] if flip else canvas,
            img_shape=(self.size, self.size),
            ori_shape=image.shape[:2],
            flip=flip)

    def _count_enlarged(self, path: str, shape: Tuple[int, ...]) -> None:
        is_first = not self.enlarged
        self._enlarged.add()
        if is_first and get_rank() == 0:
            print_log(
                f'{path}, {shape[1]}x{shape[0]} pixels, is smaller than the '
                f'canvas of {self.size} and is enlarged; further ones are '
                'counted without a line each (`cmae stats` tells how many).',
                logger='current',
                level=logging.WARNING)

    def draw_crop(self, height: int, width: int,
                  rng: np.random.Generator) -> Tuple[int, int, int, int]:
        """Draw a crop as torchvision's ``RandomResizedCrop`` does.

        In a strip, longer than 3 to 1, that would find the same crop in the
        middle again and again: here its share is of the largest square in the
        strip, and it may lie anywhere.

        Args:
            height (int): Height of the image in pixels.
            width (int): Width of the image in pixels.
            rng (np.random.Generator): Generator that the crop is drawn from.

        Returns:
            tuple: ``(y, x, height, width)`` of the crop, in pixels.
        """
        low, high = (math.log(r) for r in self.aspect_ratio_range)
        short, long = sorted((height, width))
        is_strip = long > _STRIP_ASPECT * short
        whole = short * short if is_strip else height * width
        for _ in range(10):
            area = whole * rng.uniform(*self.crop_ratio_range)
            aspect = math.exp(rng.uniform(low, high))
            w, h = round((area * aspect)**0.5), round((area / aspect)**0.5)
            if 0 < w <= width and 0 < h <= height:
                return (int(rng.integers(height - h + 1)),
                        int(rng.integers(width - w + 1)), h, w)
        # Too long an image: the largest crop of an allowed shape, centred
        # unless it is a strip.
        aspect = np.clip(width / height, *self.aspect_ratio_range)
        w = max(min(width, round(height * aspect)), 1)
        h = max(min(height, round(width / aspect)), 1)
        if is_strip:
            return (int(rng.integers(height - h + 1)),
                    int(rng.integers(width - w + 1)), h, w)
        return (height - h) // 2, (width - w) // 2, h, w

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(size={self.size}, '
                f'crop_ratio_range={self.crop_ratio_range}, '
                f'aspect_ratio_range={self.aspect_ratio_range}, '
                f'flip_prob={self.flip_prob}, '
                f'channels={self.settings.channels}, '
                f'dtype={self.settings.dtype!r})')
