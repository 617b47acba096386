"""Transforms of loaded images: resizing, both views, seeds."""
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmengine.logging import print_log
from mmpretrain.datasets import ResizeEdge
from mmpretrain.registry import TRANSFORMS

from ...image_size import ImageSize, Pair, cover, to_pair, to_size, words_of
from ..decode import resize_image
from ..samplers import seed_generators


def check_numbers(name: str, value: Any, count: int, least: float = 0,
                  most: float = math.inf) -> tuple[float, ...]:
    """Check a sequence of numbers.

    Args:
        name (str): Name of the argument, for the error.
        value (Any): Its value.
        count (int): Required number of values.
        least (float): The smallest number allowed. Defaults to 0.
        most (float): The largest number allowed. Defaults to no limit.

    Raises:
        ValueError: If the value is invalid.
    """
    if not isinstance(value, Sequence) or len(value) != count or not all(
            isinstance(number, (int, float)) and math.isfinite(number)
            and least <= number <= most for number in value):
        bound = (f' from {least:g} to {most:g}' if most < math.inf
                 else f' of {least:g} or more')
        raise ValueError(f'{name} must be {count} numbers{bound}, but got '
                         f'{value!r}')
    return tuple(value)


def check_range(name: str, value: Any, most: float = math.inf
                ) -> tuple[float, float]:
    """Check a range of numbers above 0.

    Args:
        name (str): Name of the argument, for the error.
        value (Any): Its value.
        most (float): The largest number allowed. Defaults to no limit.

    Raises:
        ValueError: If the value is invalid.
    """
    low, high = check_numbers(name, value, 2, 0, most)
    if not 0 < low <= high:
        raise ValueError(f'{name} must be two numbers above 0, the lower one '
                         f'first, but got {value!r}')
    return low, high


def check_share(name: str, value: Any) -> float:
    """Check a probability or a share.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{name} must be between 0 and 1, but got {value!r}')
    return value


def check_canvas(canvas_size: ImageSize | None, size: ImageSize,
                 max_shift: int) -> Pair:
    """Check that both windows fit into the canvas.

    Args:
        canvas_size (int | Sequence[int], optional): Size of the canvas in
            pixels; None skips the check.
        size (int | Sequence[int]): Size of both windows in pixels.
        max_shift (int): Bound of the shift in pixels; the shift is below it.

    Returns:
        tuple[int, int]: Height and width of the windows.

    Raises:
        ValueError: If they do not fit, or a size is invalid.
    """
    height, width = to_pair(size, 'size')
    if not isinstance(max_shift, int) or max_shift < 0:
        raise ValueError('max_shift must be a whole number of 0 or more '
                         f'pixels, but got {max_shift!r}')
    needed = height + max_shift, width + max_shift
    canvas = needed if canvas_size is None else to_pair(
        canvas_size, 'canvas_size')
    if canvas[0] < needed[0] or canvas[1] < needed[1]:
        raise ValueError(
            f'a canvas of {words_of(canvas)} pixels is too small for windows '
            f'of size={words_of(size)} shifted by up to max_shift={max_shift};'
            f' it must be {words_of(needed)} or more')
    return height, width


@TRANSFORMS.register_module()
class PixelShift(BaseTransform):
    """Cut the online and the target view from one canvas.

    The online view is the window at the top left corner of the canvas. The
    target view is a window of the same size, shifted by ``(r_y, r_x)`` pixels,
    each drawn uniformly from ``[0, max_shift)``. The method applies colour
    augmentation to the target view only. Place shared transforms (resized
    crop, flip) before this one.

    **Required Keys:**

    - img (np.ndarray): The canvas, (H, W, C).

    **Modified Keys:**

    - img (list[np.ndarray]): The online and the target view, of ``size``.
    - img_shape

    **Added Keys:**

    - shift (tuple): ``(r_y, r_x)`` in pixels.

    Args:
        size (int | Sequence[int]): Side of both windows in pixels, or
            (height, width).
        max_shift (int): Exclusive bound p of the shift in pixels; 0 disables
            the shift. Defaults to 32.
        canvas_size (int | Sequence[int], optional): Size of the canvas from
            the previous transforms in pixels, checked when the pipeline is
            built. Defaults to None, checked for each image.
        target_pipeline (list[dict]): Transforms of the target view. Defaults
            to an empty list, no augmentation.
        online_pipeline (list[dict]): Transforms of the online view, for an
            ablation. Defaults to an empty list, no augmentation.

    Raises:
        ValueError: If an argument is out of range, or the canvas is smaller
            than ``size + max_shift``.
    """

    def __init__(self,
                 size: ImageSize,
                 max_shift: int = 32,
                 canvas_size: ImageSize | None = None,
                 target_pipeline: Sequence[dict] = (),
                 online_pipeline: Sequence[dict] = ()) -> None:
        super().__init__()
        self.size = check_canvas(canvas_size, size, max_shift)
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
        height, width = check_canvas(
            canvas.shape[:2], self.size, self.max_shift)
        y, x = self.draw_shift()
        online = dict(results, img=canvas[:height, :width].copy())
        online = self.online_pipeline(online)
        target = dict(results, img=canvas[y:y + height, x:x + width].copy())
        target = self.target_pipeline(target)
        results['img'] = [online['img'], target['img']]
        results['img_shape'] = (height, width)
        results['shift'] = (y, x)
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(size={to_size(self.size)}, '
                f'max_shift={self.max_shift}, '
                f'canvas_size={self.canvas_size}, '
                f'target_pipeline={self.target_pipeline})')


@TRANSFORMS.register_module()
class ResizeImage(ResizeEdge):
    """mmpretrain's ``ResizeEdge`` for images of any channels and type.

    Uses anti-aliased bicubic interpolation like Pillow, which ``ResizeEdge``
    supports for 8-bit colours only.

    **Required Keys:**

    - img (np.ndarray): (H, W, C), uint8, uint16 or float32.

    **Modified Keys:**

    - img
    - img_shape

    **Added Keys:**

    - scale
    - scale_factor

    Args:
        scale (int | Sequence[int]): Length of the edge in pixels; or (height,
            width) to cover without a change of the aspect ratio.
        edge (str): 'short', 'long', 'width' or 'height'. Defaults to 'short'.
    """

    def __init__(self, scale: ImageSize, edge: str = 'short') -> None:
        super().__init__(scale, edge)

    def transform(self, results: dict) -> dict:
        """Resize the image.

        Args:
            results (dict): The sample.

        Returns:
            dict: The sample with the resized image.
        """
        if isinstance(self.scale, int):
            return super().transform(results)
        size = cover(to_pair(self.scale), results['img'].shape[:2])
        results['scale'] = size[::-1]
        self._resize_img(results)
        return results

    def _resize_img(self, results: dict) -> None:
        width, height = results['scale']
        former = results['img'].shape
        results['img'] = resize_image(results['img'], (height, width))
        results['img_shape'] = (height, width)
        results['scale_factor'] = (width / former[1], height / former[0])


@TRANSFORMS.register_module()
class SeedDraws(BaseTransform):
    """Seed the random transforms of a pipeline for each sample.

    Use it as the first transform of a training pipeline of mmpretrain, mmdet
    or mmseg, with ``SeededSampler`` or ``SeededInfiniteSampler``. Random
    transforms then do not depend on the number of workers and repeat in a
    resumed run. They must draw from the global generators of ``random``, numpy
    or torch, as the transforms of these libraries do.

    A sample without a seed, such as a replacement of an unreadable one,
    continues the sequence of the last sample. If no sample has a seed, this is
    logged.

    **Required Keys:**

    - sample_idx (optional): Index of the sample, set by mmengine's data sets.
    """

    _found_one = False

    def transform(self, results: dict) -> dict:
        """Seed the process's generators.

        Args:
            results (dict): The sample.

        Returns:
            dict: The same sample.
        """
        seed = getattr(results.get('sample_idx'), 'seed', None)
        if seed is not None:
            seed_generators(seed)
        elif not self._found_one:
            print_log(
                'SeedDraws got a sample without a seed. Its random transforms '
                'depend on the number of workers and change in a resumed run; '
                "set train_dataloader.sampler.type='mmpretrain.SeededSampler' "
                "or 'mmpretrain.SeededInfiniteSampler'.",
                logger='current',
                level=logging.WARNING)
        self._found_one = True  # or a warning was logged
        return results
