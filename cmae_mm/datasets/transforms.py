"""Transforms: loading and cropping images, both views, seeds."""
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmpretrain.datasets import ResizeEdge
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from ..dependencies import MissingLibrary
from ..image_size import (ImageSize, Pair, cover_size, format_size, to_pair,
                          to_size)
from .decode import (UndecodableImage, UnfitImage, decode_resized,
                     decode_short, make_settings, resize_image)
from .names import encode_name
from .samplers import seed_generators
from .source import MAX_BROKEN, open_record

# Upper bound of the number of data workers.
_PLACES = 128
# Largest number of broken files that each worker logs by name.
_NAMED = 100
# Smallest aspect ratio of strips, relative to the canvas.
_STRIP_ASPECT = 3


class BrokenImagesError(RuntimeError):
    """Too many images cannot be decoded; the message has an example."""


class WorkerCounter:
    """Counter shared by all data workers."""

    def __init__(self) -> None:
        # One entry for each worker.
        self._counts = torch.zeros(
            _PLACES, dtype=torch.int64).share_memory_()

    def add(self) -> None:
        """Add one."""
        worker = get_worker_info()
        place = worker.id % _PLACES if worker else 0
        self._counts.numpy()[place] += 1  # faster than torch's

    def __int__(self) -> int:
        return int(self._counts.sum())


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image in any supported format without loss.

    An image that would lose information raises an error with its name and the
    setting that accepts it.

    **Required Keys:**

    - img_path
    - img_key, backend_args (optional): Where an image in a store is.

    **Added Keys:**

    - img (np.ndarray): (H, W, C), of the type ``dtype``. Three channels of
      uint8 are in BGR; all others are in the file's order.
    - img_shape, ori_shape

    Args:
        backend_args (dict, optional): Arguments of mmengine's file backend.
            Defaults to None.
        channels (int): Number C of channels, from 1 to 64. Defaults to 3.
        dtype (str): 'uint8', 'uint16' or 'float32'. Defaults to 'uint8'.
        value_range (Sequence | str, optional): This and the following
            arguments, see :class:`~cmae_mm.datasets.decode.ImageSettings`.
        bands (Sequence[int], optional): Channels of the file to read.
        fill (float | str, optional): Value of missing pixels.
        window (Sequence[float] | str, optional): Window of DICOM values.
        pages (str, optional): Meaning of the pages of a file.
        max_pixels (int, optional): Largest number of pixels to decode at once.
            Defaults to 25 million.
        short_side (int, optional): Shorter side in pixels to which images with
            more than ``max_pixels`` are resized, for formats that can be
            decoded in parts. Defaults to None, such images raise an error.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 backend_args: dict | None = None,
                 channels: int = 3,
                 dtype: str = 'uint8',
                 value_range: Any = None,
                 bands: Sequence[int] | None = None,
                 fill: Any = None,
                 window: Any = None,
                 pages: str | None = None,
                 max_pixels: int | None = None,
                 short_side: int | None = None) -> None:
        self.backend_args = backend_args
        self.short_side = short_side
        self.settings = make_settings(
            channels=channels, dtype=dtype, value_range=value_range,
            bands=bands, fill=fill, window=window, pages=pages,
            max_pixels=max_pixels)

    def transform(self, results: dict) -> dict | None:
        """Load the image at ``img_path``.

        Args:
            results (dict): The sample, with ``img_path``.

        Returns:
            dict: The sample with ``img``.

        Raises:
            UndecodableImage: If it cannot be decoded; names the file.
            UnfitImage: If it would lose information.
            MissingLibrary: If an optional library is needed for it.
        """
        try:
            return self.load(results)
        except UndecodableImage as error:
            name = encode_name(results['img_path'])
            raise UndecodableImage(
                f'{name} cannot be decoded ({error})') from error

    def load(self, results: dict) -> dict:
        """Load the image at ``img_path``, or raise any error."""
        data = open_record(results, self.backend_args)
        image = np.ascontiguousarray(decode_short(
            data, self.short_side, self.settings,
            encode_name(results['img_path'])))
        return dict(results, img=image, img_shape=image.shape[:2],
                    ori_shape=image.shape[:2])

    def __repr__(self) -> str:
        given = ', '.join(f'{name}={value!r}' for name, value
                          in self.settings._asdict().items())
        return f'{type(self).__name__}({given})'


@TRANSFORMS.register_module()
class LoadImageOrSkip(LoadImage):
    """Load an image; skip it with a warning if it is broken.

    For a broken image, mmengine's ``BaseDataset`` draws another sample.
    ``PretrainCheckHook`` reports the number of broken images after each epoch
    and stops training if their ratio exceeds ``max_broken``.

    Args:
        max_broken (float): Largest ratio of broken images. Defaults to 0.1.
        max_failures (int): Number of broken files in a row after which
            loading fails. Defaults to 100.
        **kwargs: Arguments of :class:`LoadImage`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, max_broken: float = MAX_BROKEN, max_failures: int = 100,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_broken = check_fraction('max_broken', max_broken)
        self.max_failures = max_failures
        self._loaded, self._broken = WorkerCounter(), WorkerCounter()
        self._in_a_row = 0
        self._named: set[str] = set()

    @property
    def loaded(self) -> int:
        """Number of loaded samples, without replacements."""
        return int(self._loaded)

    @property
    def broken(self) -> int:
        """Number of broken images among them."""
        return int(self._broken)

    def transform(self, results: dict) -> dict | None:
        """Load the image at ``img_path``.

        Args:
            results (dict): The sample, with ``img_path``.

        Returns:
            dict | None: The sample with ``img``, or None for a broken file.

        Raises:
            BrokenImagesError: If ``max_failures`` files in a row were broken.
            UnfitImage: If the image does not fit the settings.
            MissingLibrary: If an optional library is needed for it.
        """
        is_first = not results.pop('is_replacement', False)
        if is_first:
            self._loaded.add()
        try:
            loaded = self.load(results)
            self._in_a_row = 0
            return loaded
        except (UnfitImage, MissingLibrary):
            raise
        # Decoders raise many kinds of errors for broken files.
        except Exception as error:
            text = ' '.join(str(error).split())
            reason = (text if isinstance(error, UndecodableImage) else
                      f'{type(error).__name__}: {text}')
        if is_first:
            self._broken.add()
        self._in_a_row += 1
        path = encode_name(results['img_path'])
        if self._in_a_row >= self.max_failures:
            raise BrokenImagesError(
                f'{self._in_a_row} images in a row could not be decoded, the '
                f'last one: {path} ({reason}); check the data folder')
        self._name(path, reason)
        return None

    def _name(self, path: str, reason: str) -> None:
        """Log a broken file once per worker, up to a number of files."""
        if path in self._named or len(self._named) >= _NAMED:
            return
        self._named.add(path)
        text = (f'Skipped {path}, which cannot be decoded ({reason}); another '
                'image takes its place.')
        if len(self._named) == _NAMED:
            text += ' Further broken images are counted, but not named.'
        # Loggers of ranks other than 0 print errors only.
        print_log(
            text, logger='current',
            level=logging.WARNING if get_rank() == 0 else logging.ERROR)


@TRANSFORMS.register_module()
class LoadCanvas(LoadImageOrSkip):
    """Load an image and crop the canvas of both views.

    Both views share decoding, a random resized crop and a flip.
    ``TwoViewDataPreprocessor`` then cuts the views of the whole batch. Large
    JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if the smallest
    crop still has enough pixels. Images smaller than the canvas are enlarged
    and counted.

    Broken images are skipped, see :class:`LoadImageOrSkip`. An image that
    would lose information raises an error.

    **Required Keys:**

    - img_path
    - img_key, backend_args (optional): Where an image in a store is.
    - view_seed (optional): Seed of the crop and the flip, see
      ``SeededSampler``.

    **Added Keys:**

    - img (np.ndarray): The canvas, (H, W, C), of the type ``dtype``. Three
      channels of uint8 are in BGR; all others are in the file's order.
    - img_shape, ori_shape, flip

    Args:
        size (int | Sequence[int]): Side of the canvas in pixels, or
            (height, width).
        crop_ratio_range (Sequence[float]): Range of the area of the crop,
            relative to the image. Defaults to (0.2, 1.0).
        aspect_ratio_range (Sequence[float]): Range of the crop's aspect ratio,
            width over height, relative to the canvas's. Defaults to
            (3 / 4, 4 / 3).
        flip_prob (float): Probability of a horizontal flip. Defaults to 0.5.
        **kwargs: Arguments of :class:`LoadImageOrSkip` and
            :class:`LoadImage`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 size: ImageSize,
                 crop_ratio_range: Sequence[float] = (0.2, 1.0),
                 aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
                 flip_prob: float = 0.5,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = to_pair(size, 'size')
        self.crop_ratio_range = check_range(
            'crop_ratio_range', crop_ratio_range, most=1)
        self.aspect_ratio_range = check_range(
            'aspect_ratio_range', aspect_ratio_range)
        self.flip_prob = check_fraction('flip_prob', flip_prob)
        # Shorter side for which the smallest crop has as many pixels as the
        # canvas, also in a strip.
        self._shrink_to = math.ceil(
            max(self.size) / self.crop_ratio_range[0]**0.5)
        self._enlarged = WorkerCounter()

    @property
    def enlarged(self) -> int:
        """Number of images smaller than the canvas so far.

        Images that are loaded again are counted again.
        """
        return int(self._enlarged)

    def load(self, results: dict) -> dict:
        """Load the image at ``img_path`` and crop the canvas."""
        rng = np.random.default_rng(
            results.get('view_seed', np.random.randint(2**31)))
        shape: list[int] = []

        def choose(height: int, width: int) -> tuple[Any, tuple[int, int]]:
            shape[:] = height, width
            return self.draw_crop(height, width, rng), self.size

        path = encode_name(results['img_path'])
        canvas = decode_resized(
            open_record(results, self.backend_args), choose, self.settings,
            path, self._shrink_to)
        if shape[0] < self.size[0] or shape[1] < self.size[1]:
            self._count_enlarged(path, shape)
        flip = bool(rng.random() < self.flip_prob)
        return dict(
            results,
            img=canvas[:, ::-1] if flip else canvas,
            img_shape=self.size,
            ori_shape=tuple(shape),
            flip=flip)

    def _count_enlarged(self, path: str, shape: Sequence[int]) -> None:
        is_first = not self.enlarged
        self._enlarged.add()
        if is_first and get_rank() == 0:
            print_log(
                f'{path}, {shape[1]}x{shape[0]} pixels, is smaller than the '
                f'canvas of {format_size(self.size)} and is enlarged; further '
                'images are counted but not logged (`cmae stats DATA --side '
                f'{min(self.size)}` reports their number).',
                logger='current',
                level=logging.WARNING)

    def draw_crop(self, height: int, width: int,
                  rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a crop like torchvision's ``RandomResizedCrop``.

        In a strip (aspect ratio above 3 relative to the canvas) torchvision
        would always return the same centre crop. Here the crop's area is
        relative to the largest part of the strip with the canvas's aspect
        ratio, at any position.

        Args:
            height (int): Height of the image in pixels.
            width (int): Width of the image in pixels.
            rng (np.random.Generator): Random generator.

        Returns:
            tuple: ``(y, x, height, width)`` of the crop, in pixels.
        """
        rows, columns = self.size
        shape = columns / rows
        low, high = self.aspect_ratio_range
        # Both sides in units of the canvas.
        short, long = sorted((height * columns, width * rows))
        is_strip = long > _STRIP_ASPECT * short
        whole = short * short / (rows * columns) if is_strip else (
            height * width)
        for _ in range(10):
            area = whole * rng.uniform(*self.crop_ratio_range)
            aspect = shape * math.exp(
                rng.uniform(math.log(low), math.log(high)))
            w, h = round((area * aspect)**0.5), round((area / aspect)**0.5)
            if 0 < w <= width and 0 < h <= height:
                return (int(rng.integers(height - h + 1)),
                        int(rng.integers(width - w + 1)), h, w)
        # The image is too long: use the largest crop of an allowed shape,
        # centred unless it is a strip.
        aspect = shape * np.clip(width / height / shape, low, high)
        w = max(min(width, round(height * aspect)), 1)
        h = max(min(height, round(width / aspect)), 1)
        if is_strip:
            return (int(rng.integers(height - h + 1)),
                    int(rng.integers(width - w + 1)), h, w)
        return (height - h) // 2, (width - w) // 2, h, w

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(size={to_size(self.size)}, '
                f'crop_ratio_range={self.crop_ratio_range}, '
                f'aspect_ratio_range={self.aspect_ratio_range}, '
                f'flip_prob={self.flip_prob}, '
                f'channels={self.settings.channels}, '
                f'dtype={self.settings.dtype!r})')


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


def check_fraction(name: str, value: Any) -> float:
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
            f'a canvas of {format_size(canvas)} pixels is too small for '
            f'windows of size={format_size(size)} shifted by up to '
            f'max_shift={max_shift}; it must be {format_size(needed)} or more')
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
        size = cover_size(to_pair(self.scale), results['img'].shape[:2])
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
