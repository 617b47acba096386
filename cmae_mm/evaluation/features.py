"""Feature extraction with a frozen encoder, shared by all evaluations."""
import time
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
import torch
from mmengine.dist import all_gather, get_dist_info, is_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..datasets.names import encode_name
from ..datasets.source import ImageSource, ignore_interrupts
from ..dependencies import cpu_count
from ..progress import Progress
from .centre_crop import CentreCrop
from .data import EvaluationDataError, configured_images

# A part is written after this number of bytes or seconds.
_PART_BYTES = 64 * 2**20
_PART_SECONDS = 30.
# Name of an image, its crop (C, H, W) or None, and the read error or ''.
_Item = Tuple[str, Optional[Tensor], str]


class FeatureSet(NamedTuple):
    """Features (N, D) and labels (N, ) of the images of a source."""

    features: Tensor
    labels: Tensor


class Part(NamedTuple):
    """Features of images ``start`` to ``stop`` of a list.

    Args:
        start (int): Number of the first image.
        stop (int): Number after the last one.
        paths (List[str]): Images with features in this part.
        features (Any): (n, D), or (n, L, D) of patch tokens.
        skipped (Dict[str, str]): Unreadable images, and the reason.
    """

    start: int
    stop: int
    paths: List[str]
    features: Any
    skipped: Dict[str, str]


def storable(name: str) -> str:
    """Return a name that numpy's arrays of strings can store.

    They drop zeros at the end, which may occur in shards.
    """
    return encode_name(name) if '\0' in name else name


class _Crops(Dataset):
    """Crops of some images of a source."""

    def __init__(self, source: ImageSource, crop: CentreCrop,
                 numbers: Sequence[int]) -> None:
        self.source, self.crop, self.numbers = source, crop, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> _Item:
        number = self.numbers[index]
        name = storable(self.source.names[number])
        try:
            image = self.crop.decode(
                self.source.open(number), encode_name(name), whole=False)
            return name, self.crop(image), ''
        # Decoders raise many kinds of errors for broken files.
        except Exception as error:
            text = ' '.join(str(error).replace('\0', '').split())
            return name, None, text or type(error).__name__


def _load(source: ImageSource, crop: CentreCrop, numbers: Sequence[int],
          batch_size: int, num_workers: int) -> DataLoader:
    """Load crops in batches, without changing random states."""
    return DataLoader(
        _Crops(source, crop, numbers),
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
        FeatureSet: Features and labels of all images, on each process and on
        the encoder's device.

    Raises:
        EvaluationDataError: If an image cannot be read.
    """
    rank, world = get_dist_info()
    count = len(source)
    # Each process gets every n-th image; the last round is padded.
    numbers = [n % count for n in range(rank, count + -count % world, world)]
    loader = _load(source, crop, numbers, batch_size, num_workers)
    features = []
    with Progress(count, 'features',
                  enabled=progress and is_main_process()) as shown:
        for batch in loader:
            for name, image, reason in batch:
                if image is None:
                    place = encode_name(name)
                    raise EvaluationDataError(
                        reason if place in reason else f'{place}: {reason}')
            images = torch.stack([image for _, image, _ in batch])
            features.append(encode(images).to(dtype))
            shown.update(len(batch) * world)
    joined = torch.stack(all_gather(torch.cat(features)), dim=1)
    return FeatureSet(
        joined.flatten(0, 1)[:count],
        torch.as_tensor(np.asarray(source.labels), device=joined.device))


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
                     ranges: List[Tuple[int, int]], batch_size: int,
                     num_workers: Optional[int], dtype: str,
                     in_parts: bool) -> Iterator[Part]:
    """Yield the features of ranges of images, and skip unreadable images.

    Args:
        model (PretrainedEncoder): The encoder.
        source (ImageSource): The images.
        ranges (List[Tuple[int, int]]): Start and stop of each range.
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
            part, begun = _Collected(start, dtype), time.monotonic()
            for batch in loader:
                images = [image for _, image, _ in batch if image is not None]
                part.add(batch, _features(model, images, dtype) if images
                         else None)
                progress.update(len(batch))
                if in_parts and part.stop < stop and (
                        part.size >= _PART_BYTES
                        or time.monotonic() - begun >= _PART_SECONDS):
                    yield part.take()
                    part = _Collected(part.stop, dtype)
                    begun = time.monotonic()
            yield part.take()


class _Collected:
    """A part to which batches are added."""

    def __init__(self, start: int, dtype: str) -> None:
        self.start = self.stop = start
        self.size = 0
        self._names: List[str] = []
        self._features = [np.zeros((0, ), dtype)]
        self._skipped: Dict[str, str] = {}

    def add(self, batch: List[_Item],
            features: Optional[np.ndarray]) -> None:
        """Add a batch, and the features of its readable images."""
        self.stop += len(batch)
        for name, image, reason in batch:
            if image is None:
                self._skipped[name] = reason
            else:
                self._names.append(name)
        if features is not None:
            self.size += features.nbytes
            self._features.append(features)

    def take(self) -> Part:
        """Return the part."""
        features = self._features[1:] or self._features
        return Part(self.start, self.stop, self._names,
                    np.concatenate(features), self._skipped)


@torch.no_grad()
def _features(model: Any, images: List[Tensor],
              dtype: str) -> np.ndarray:
    return model.encode(torch.stack(images)).cpu().numpy().astype(dtype)
