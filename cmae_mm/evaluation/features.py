"""Decoding, centre crop and features, shared by all evaluations."""
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import (all_gather, all_gather_object, get_dist_info,
                           is_main_process)
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..datasets.decode import (ImageSettings, RawImage, UndecodableImage,
                               UnfitImage, decode_short, decode_windows,
                               finish, from_pillow, make_settings,
                               resize_image, to_hwc)
from ..datasets.decode.image import Encoded
from ..datasets.names import add_reason, encode_name
from ..datasets.source import (MAX_BROKEN, ImageSource, ignore_interrupts,
                               open_record, select_images)
from ..dependencies import MissingLibrary, cpu_count
from ..image_size import ImageSize, cover_size, resize_size, to_pair
from ..progress import Progress
from .data import EvaluationDataError, configured_images, place_of


class CentreCrop:
    """Resize an image and crop the centre.

    The image keeps its aspect ratio and is resized to the smallest size that
    covers the crop and a margin; for a square crop, its shorter side has a
    given length.

    Args:
        size (int | Sequence[int]): Side of the crop in pixels, or (H, W).
        images (Mapping[str, Any], optional): Arguments of ``LoadImage`` for
            decoding. Defaults to None, 8-bit colours.
        short_side (int, optional): Shorter side of crop and margin in pixels.
            Defaults to 256/224 of the crop's.

    Attributes:
        settings (ImageSettings): How images are decoded.
    """

    def __init__(self,
                 size: ImageSize,
                 images: Mapping[str, Any] | None = None,
                 short_side: int | None = None) -> None:
        self.settings: ImageSettings = make_settings(**(images or {}))
        self.size = to_pair(size, 'size')
        self.short_side = min(resize_size(size, short_side))

    def decode(self, data: Encoded, name: str, whole: bool = True,
               windows: bool = False) -> Any:
        """Decode an image file as in training.

        Args:
            data (bytes | Path): The file, or the path of a large one.
            name (str): For the error.
            whole (bool): Whether to keep the size of the file. If not, images
                of more than ``max_pixels`` are resized for the crop while they
                are decoded. Defaults to True.
            windows (bool): Whether images of more than ``max_pixels`` are
                opened to read windows of them. Defaults to False.

        Returns:
            np.ndarray | LargeImage: (H, W, C); three channels of uint8 are in
            BGR.

        Raises:
            ValueError: If it cannot be decoded, or would lose something.
        """
        name = encode_name(name)
        try:
            if windows:
                return decode_windows(data, self.settings, name)
            return decode_short(
                data, None if whole else max(
                    resize_size(self.size, self.short_side)),
                self.settings, name)
        except UndecodableImage as error:
            raise ValueError(f'{name} cannot be decoded ({error})') from error

    def load(self, read: Callable[[], Encoded], name: str) -> Tensor:
        """Read, decode and crop an image file, see :meth:`decode`."""
        return self(self.decode(read(), name, whole=False))

    def read(self, image: Any, whole: bool = True,
             windows: bool = False) -> Any:
        """Decode an image from a file, bytes, a PIL image or an array.

        Args:
            image (Any): See
                :meth:`~cmae_mm.apis.PretrainedEncoder.preprocess`.
            whole (bool): See :meth:`decode`.
            windows (bool): Likewise.

        Returns:
            np.ndarray | LargeImage: See :meth:`decode`.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If it is of another type.
            ValueError: If it cannot be decoded, or would lose something.
        """
        if isinstance(image, Image.Image):
            return self._convert(from_pillow, image)
        if isinstance(image, np.ndarray):
            return self._convert(lambda array, settings: RawImage(
                to_hwc(array, settings)), image)
        if hasattr(image, 'read'):
            image = image.read()
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self.decode(bytes(image), 'the image', whole, windows)
        if not isinstance(image, (str, os.PathLike)):
            raise TypeError(
                'expected one image (a file, its bytes, a PIL image or an '
                f'array (H, W, C)), but got {type(image).__name__}; stack the '
                'results of several images')
        name = os.fspath(image)
        try:
            data = open_record(dict(img_path=name))
        except (OSError, ValueError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise FileNotFoundError(
                f'the image file {name[:200]!r} cannot be read: {reason}'
            ) from error
        return self.decode(data, name, whole, windows)

    def _convert(self, reader: Any, image: Any) -> np.ndarray:
        try:
            raw = reader(image, self.settings)
            return finish(raw, 'the image', self.settings)
        except OSError as error:  # of a PIL image that was not loaded before
            raise ValueError(
                f'the image cannot be decoded ({error})') from error

    def __call__(self, image: np.ndarray) -> Tensor:
        """Resize and crop an image, (H, W, C), as :meth:`decode` returns it.

        Returns:
            Tensor: (C, H, W), of the image's type, colours as RGB.
        """
        image = resize_image(image, cover_size(
            resize_size(self.size, self.short_side), image.shape[:2]))
        (top, height), (left, width) = (
            (max(round((side - wanted) / 2), 0), wanted)
            for side, wanted in zip(image.shape[:2], self.size))
        crop = image[top:top + height, left:left + width]
        pixels = torch.from_numpy(
            np.ascontiguousarray(crop.transpose(2, 0, 1)))
        return pixels[[2, 1, 0]] if self.settings.is_bgr else pixels


# A part is written after this number of bytes or seconds.
_PART_BYTES = 64 * 2**20
_PART_SECONDS = 30.
# Name of an image, its crop (C, H, W) or None, and the read error or ''.
_Item = tuple[str, Tensor | None, str]


class FeatureSet(NamedTuple):
    """Features (N, D) and labels (N, ) of the images of a source."""

    features: Tensor
    labels: Tensor


class Part(NamedTuple):
    """Features of images ``start`` to ``stop`` of a list.

    Args:
        start (int): Number of the first image.
        stop (int): Number after the last one.
        paths (list[str]): Images with features in this part.
        features (Any): (n, D), or (n, L, D) of patch tokens.
        skipped (dict[str, str]): Unreadable images, and the reason.
    """

    start: int
    stop: int
    paths: list[str]
    features: Any
    skipped: dict[str, str]


def storable(name: str) -> str:
    """Return a name that numpy's arrays of strings can store.

    They drop zeros at the end, which may occur in shards.
    """
    return encode_name(name) if '\0' in name else name


class _Crops(Dataset):
    """Crops of some images of a source."""

    def __init__(self, source: ImageSource, crop: CentreCrop,
                 numbers: Sequence[int], strict: bool) -> None:
        self.source, self.crop, self.numbers = source, crop, numbers
        self.strict = strict

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> _Item:
        number = self.numbers[index]
        name = storable(self.source.names[number])
        return name, *try_reading(
            partial(self.crop.load, partial(self.source.open, number),
                    encode_name(name)), self.strict)


def try_reading(read: Callable[[], Any], strict: bool = False
                ) -> tuple[Any, str]:
    """Read an image.

    Args:
        read (Callable): Reads and decodes it.
        strict (bool): Whether to raise errors that concern all images, such
            as another number of channels. Defaults to False.

    Returns:
        tuple: The result, or None, and the read error or ''.

    Raises:
        UnfitImage: If ``strict`` and the image does not fit the settings.
        MissingLibrary: If ``strict`` and a library for it is not installed.
    """
    try:
        return read(), ''
    # Decoders raise many kinds of errors for broken files.
    except Exception as error:
        if strict and isinstance(error, (UnfitImage, MissingLibrary)):
            raise
        text = (error.strerror if isinstance(error, OSError) else None
                ) or str(error)
        return None, ' '.join(text.replace('\0', '').split()) or (
            type(error).__name__)


def check_unreadable(skipped: Mapping[str, str], count: int,
                     place: str) -> None:
    """Check that few images are unreadable.

    Args:
        skipped (Mapping[str, str]): Unreadable images, and the reason.
        count (int): Number of all images.
        place (str): Their folder or list.

    Raises:
        EvaluationDataError: If they are more than a tenth.
    """
    if len(skipped) > MAX_BROKEN * count:
        raise EvaluationDataError(
            f'{len(skipped):,} of {count:,} images of {place} cannot be read, '
            f'more than a tenth, the first: '
            f'{add_reason(*next(iter(skipped.items())))}')


def describe_none(skipped: Mapping[str, str]) -> str:
    """Describe the error that no image could be read."""
    return (f'none of the {len(skipped)} images could be read, the first: '
            f'{add_reason(*next(iter(skipped.items())))}')


def print_skipped(skipped: Mapping[str, str], end: str = '') -> None:
    """Print the first five unreadable images, and the number of all."""
    for name, reason in list(skipped.items())[:5]:
        print(f'skipped: {add_reason(name, reason)}')
    if skipped:
        print(f'{len(skipped):,} images could not be read{end}')


def warn_if_equal(features: Any) -> None:
    """Warn if several images have the same features, up to rounding.

    Args:
        features (torch.Tensor | np.ndarray): One row per image.
    """
    rows = torch.as_tensor(features)
    if len(rows) < 2:
        return
    low, high = rows.amin(dim=0).float(), rows.amax(dim=0).float()
    rounding = max(torch.finfo(rows.dtype).eps, 1e-5)
    if (high - low).max() <= rounding * torch.maximum(-low, high).max():
        print('warning: all images have the same features; they are copies of '
              'one image, or the encoder has collapsed')


def _load(source: ImageSource, crop: CentreCrop, numbers: Sequence[int],
          batch_size: int, num_workers: int,
          strict: bool = False) -> DataLoader:
    """Load crops in batches, without changing random states."""
    return DataLoader(
        _Crops(source, crop, numbers, strict),
        batch_size,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=ignore_interrupts,
        generator=torch.Generator())


@torch.no_grad()
def extract_features(encode: Callable[[Tensor], Tensor],
                     crop: CentreCrop,
                     source: ImageSource,
                     batch_size: int = 256,
                     num_workers: int = 2,
                     dtype: torch.dtype = torch.float32,
                     progress: bool = False) -> FeatureSet:
    """Extract one feature per labelled image, on all processes together.

    Unreadable images are printed, and removed from ``source``.

    Args:
        encode (Callable): Computes features (N, D) of crops (N, C, H, W) that
            are not normalised.
        crop (CentreCrop): Decodes and crops images.
        source (ImageSource): Labelled images.
        batch_size (int): Images in a batch of each process. Defaults to 256.
        num_workers (int): Data workers of each process. Defaults to 2.
        dtype (torch.dtype): Dtype of the features. Defaults to float32.
        progress (bool): Whether to show progress. Defaults to False.

    Returns:
        FeatureSet: Features and labels of all readable images, on each
        process and on the encoder's device.

    Raises:
        EvaluationDataError: If more than a tenth of the images are unreadable.
        UnfitImage: If an image does not fit the encoder.
    """
    rank, world = get_dist_info()
    count = len(source)
    # Each process gets every n-th image; the last round is padded.
    numbers = [n % count for n in range(rank, count + -count % world, world)]
    loader = _load(source, crop, numbers, batch_size, num_workers, strict=True)
    settings = crop.settings
    blank = crop(np.zeros((1, 1, settings.channels or 3), settings.dtype))
    features, skipped = [], {}
    with Progress(count, 'features',
                  enabled=progress and is_main_process()) as shown:
        for batch in loader:
            skipped.update({name: reason for name, _, reason in batch
                            if reason})
            features.append(encode(torch.stack([
                blank if image is None else image for _, image, _ in batch
            ])).to(dtype))
            shown.update(len(batch) * world)
    joined = torch.stack(all_gather(torch.cat(features)), dim=1)
    joined = joined.flatten(0, 1)[:count]
    found = {name: reason for one in all_gather_object(skipped)
             for name, reason in one.items()}
    if found:
        check_unreadable(found, count, place_of(source))
        if is_main_process():
            print_skipped(found, f' in {place_of(source)}')
        kept = [i for i in range(count)
                if storable(source.names[i]) not in found]
        joined = joined[kept]
        select_images(source, kept)
    return FeatureSet(joined, torch.as_tensor(np.asarray(source.labels),
                                              device=joined.device))


class FrozenFeatures:
    """Features of a model during its training.

    Args:
        model (CMAE): The model, without distributed wrapper; its weights
            are not changed.
        cfg (Config): Its pre-training config, see
            :func:`~cmae_mm.evaluation.data.configured_images`.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        pool (str): 'mean' of the patch tokens, or 'cls', the class token.
            Defaults to 'mean'.
        **options: Other arguments of :func:`extract_features`.

    Raises:
        EvaluationDataError: If images or labels are missing, or training and
            validation classes differ.
    """

    def __init__(self,
                 model: nn.Module,
                 cfg: Any,
                 encoder: str = 'online',
                 pool: str = 'mean',
                 **options: Any) -> None:
        from ..image_config import image_settings
        self.model = model
        self.sources = configured_images(cfg)
        self.crop = CentreCrop(
            cfg.model.backbone.img_size, image_settings(cfg),
            (cfg.get('evaluation') or {}).get('short_side'))
        self.encoder = dict(encoder=encoder, pool=pool)
        self.options = options

    def extract(self, part: str) -> FeatureSet:
        """Extract features of 'train' or 'val', on all processes together."""
        training = self.model.training
        self.model.eval()
        preprocessor = self.model.data_preprocessor
        mean, std = (getattr(preprocessor, name, default)
                     for name, default in (('mean', 0.), ('std', 1.)))
        device = next(self.model.parameters()).device

        def encode(images: Tensor) -> Tensor:
            images = (images.to(device).float() - mean) / std
            return self.model.extract_feat(images, **self.encoder)

        found = extract_features(encode, self.crop,
                                 getattr(self.sources, part), **self.options)
        self.model.train(training)
        return found


def compute_features(model: Any, source: ImageSource,
                     ranges: list[tuple[int, int]], batch_size: int,
                     num_workers: int | None, dtype: str,
                     in_parts: bool) -> Iterator[Part]:
    """Yield the features of ranges of images, and skip unreadable images.

    Args:
        model (PretrainedEncoder): The encoder.
        source (ImageSource): The images.
        ranges (list[tuple[int, int]]): Start and stop of each range.
        batch_size (int): Images in a batch.
        num_workers (int, optional): Data workers. Defaults to one for each CPU
            core, at most 8.
        dtype (str): Dtype of the features.
        in_parts (bool): Whether to yield several parts of a range.

    Yields:
        Part: Features of some images.
    """
    if num_workers is None:
        num_workers = min(8, cpu_count())
    left = sum(stop - start for start, stop in ranges)
    with Progress(len(source), 'features',
                  initial=len(source) - left) as progress:
        for start, stop in ranges:
            loader = _load(source, model.centre_crop, range(start, stop),
                           batch_size, num_workers)
            items: list[tuple[str, str]] = []
            features: list[np.ndarray] = []
            begun = time.monotonic()
            for batch in loader:
                items += [(name, reason) for name, _, reason in batch]
                images = [image for _, image, _ in batch if image is not None]
                if images:
                    features.append(_features(model, images, dtype))
                progress.update(len(batch))
                if in_parts and (
                        sum(f.nbytes for f in features) >= _PART_BYTES
                        or time.monotonic() - begun >= _PART_SECONDS):
                    yield _part(start, items, features, dtype)
                    start += len(items)
                    items, features = [], []
                    begun = time.monotonic()
            if items:
                yield _part(start, items, features, dtype)


def _part(start: int, items: Sequence[tuple[str, str]],
          features: Sequence[np.ndarray], dtype: str) -> Part:
    """Join names with read errors, '' for none, and features of batches."""
    return Part(
        start, start + len(items),
        [name for name, reason in items if not reason],
        np.concatenate(features or [np.zeros((0, ), dtype)]),
        {name: reason for name, reason in items if reason})


@torch.no_grad()
def _features(model: Any, images: list[Tensor],
              dtype: str) -> np.ndarray:
    return model.encode(torch.stack(images)).cpu().numpy().astype(dtype)
