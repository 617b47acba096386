"""Transforms that load images and crop the canvas."""
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from ...dependencies import MissingLibrary
from ...image_size import ImageSize, to_pair, to_size, words_of
from ..decode import (UndecodableImage, UnfitImage, decode_resized,
                      decode_short, make_settings)
from ..names import encode_name
from ..source import open_record
from .views import check_range, check_share

# Largest share of broken images by default.
MAX_BROKEN = 0.1
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
        self.max_broken = check_share('max_broken', max_broken)
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
        self.flip_prob = check_share('flip_prob', flip_prob)
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
                f'canvas of {words_of(self.size)} and is enlarged; further '
                'images are counted but not logged (`cmae stats` reports '
                'their number).',
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
