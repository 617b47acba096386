"""The whole work of a data worker: decode, crop, flip, in the file's type."""
import logging
import math
from typing import Any, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine import fileio
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from ..decode import decode_image, make_settings, resize_image
from .loading import SkipBroken

# More than there are data workers.
_PLACES = 128


@TRANSFORMS.register_module()
class LoadCanvas(SkipBroken):
    """Load an image and make the canvas of both views.

    One decoding, one random resized crop, one flip: what both views share.
    The views themselves are made of the whole batch, by
    ``TwoViewDataPreprocessor``. Large JPEG files are decoded at a half or less
    when that leaves the smallest crop enough pixels. Images smaller than the
    canvas are enlarged, and counted in ``enlarged``.

    By default images are colours of 8 bits. Others are taken by ``channels``
    and ``dtype``, which ``cmae stats`` finds; an image that would lose
    something by them is refused by its name, and not skipped.

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
        max_failures (int): Number of files in a row that cannot be decoded
            after which loading fails. Defaults to 100.
        backend_args (dict, optional): Arguments of mmengine's file backend.
            Defaults to None.
        channels (int): Number C of channels, from 1 to 64. Defaults to 3.
        dtype (str): 'uint8', 'uint16' or 'float32'. Defaults to 'uint8'.
        value_range (Sequence | str, optional): This and the next ones, see
            :class:`~cmae_mm.datasets.decode.ImageSettings`.
        bands (Sequence[int], optional): Channels of the file that are taken.
        fill (float | str, optional): What stands for missing pixels.
        window (Sequence[float] | str, optional): Window of DICOM values.
        pages (str, optional): What the pages of a file are.
        strip_aspect (float): Longer images than this, the longer over the
            shorter side, are strips: none of the usual crops fits into them.
            A crop's share is then of the largest square in them, and it may
            lie anywhere. Defaults to 3.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 size: int,
                 crop_ratio_range: Sequence[float] = (0.2, 1.0),
                 aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
                 flip_prob: float = 0.5,
                 max_failures: int = 100,
                 backend_args: Optional[dict] = None,
                 channels: int = 3,
                 dtype: str = 'uint8',
                 value_range: Any = None,
                 bands: Optional[Sequence[int]] = None,
                 fill: Any = None,
                 window: Any = None,
                 pages: Optional[str] = None,
                 strip_aspect: float = 3.) -> None:
        if size < 1:
            raise ValueError(f'size must be 1 pixel or more, but got {size}')
        low, high = crop_ratio_range
        if not 0 < low <= high <= 1:
            raise ValueError('crop_ratio_range must be within (0, 1] and in '
                             f'order, but got {tuple(crop_ratio_range)}')
        if not 0 <= flip_prob <= 1:
            raise ValueError(
                f'flip_prob must be between 0 and 1, but got {flip_prob}')
        if not strip_aspect >= 1:
            raise ValueError('strip_aspect must be 1 or more, but got '
                             f'{strip_aspect}')
        self.size = size
        self.strip_aspect = strip_aspect
        self.crop_ratio_range = (low, high)
        narrowest, widest = aspect_ratio_range
        self.aspect_ratio_range = (narrowest, widest)
        self.flip_prob = flip_prob
        self.max_failures = max_failures
        self.backend_args = backend_args
        self.settings = make_settings(
            channels=channels, dtype=dtype, value_range=value_range,
            bands=bands, fill=fill, window=window, pages=pages)
        # The shorter side of an image whose smallest crop has S pixels.
        self._shrink_to = math.ceil(size / low**0.5)
        # Shared with data workers, each of which counts in its own place.
        self._enlarged = torch.zeros(
            _PLACES, dtype=torch.int64).share_memory_()

    @property
    def enlarged(self) -> int:
        """Number of images that were smaller than the canvas, so far.

        Those that data workers have loaded count too; one that is loaded
        again counts again.
        """
        return int(self._enlarged.sum())

    def load(self, results: dict) -> dict:
        """Make the canvas of the image at ``img_path``."""
        data = fileio.get(
            results.get('img_key', results['img_path']),
            backend_args=results.get('backend_args', self.backend_args))
        image = decode_image(data, self._shrink_to, self.settings,
                             results['img_path'])
        if min(image.shape[:2]) < self.size:
            self._count_enlarged(results['img_path'], image.shape)
        rng = np.random.default_rng(
            results.get('view_seed', np.random.randint(2**31)))
        y, x, height, width = self.draw_crop(image.shape[0], image.shape[1],
                                             rng)
        flip = bool(rng.random() < self.flip_prob)
        canvas = resize_image(image[y:y + height, x:x + width],
                              (self.size, self.size))
        if flip:
            canvas = canvas[:, ::-1]
        results.update(
            img=canvas,
            img_shape=(self.size, self.size),
            ori_shape=image.shape[:2],
            flip=flip)
        return results

    def _count_enlarged(self, path: str, shape: Tuple[int, ...]) -> None:
        first = not self.enlarged
        worker = get_worker_info()
        self._enlarged[worker.id % _PLACES if worker else 0] += 1
        if first and get_rank() == 0:
            print_log(
                f'{path}, {shape[1]}x{shape[0]} pixels, is smaller than the '
                f'canvas of {self.size} and is enlarged; further ones are '
                'counted without a line each (`cmae stats` tells how many).',
                logger='current',
                level=logging.WARNING)

    def draw_crop(self, height: int, width: int,
                  rng: np.random.Generator) -> Tuple[int, int, int, int]:
        """Draw a crop as torchvision's ``RandomResizedCrop`` does.

        That would take the same crop in the middle of a panorama again and
        again; every part of one longer than ``strip_aspect`` can be drawn.

        Args:
            height (int): Height of the image in pixels.
            width (int): Width of the image in pixels.
            rng (np.random.Generator): Generator that the crop is drawn from.

        Returns:
            tuple: ``(y, x, height, width)`` of the crop, in pixels.
        """
        low, high = (math.log(r) for r in self.aspect_ratio_range)
        short, long = sorted((height, width))
        is_strip = long > self.strip_aspect * short
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
