"""Features of a frozen model on a data set."""
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, DefaultSampler, default_collate
from mmengine.dist import all_gather, is_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..datasets.names import encode_name
from ..datasets.source import ImageSource, ignore_interrupts
from ..dependencies import cpu_count
from ..image_config import is_plain
from ..progress import Progress
from .feature_files import Part, storable

# A part is written at the latest after so many bytes, or seconds.
_PART_BYTES = 64 * 2**20
_PART_SECONDS = 30.


class FeatureSet(NamedTuple):
    """Features (N, D) and labels (N, ) of a data set's images, in order."""

    features: Tensor
    labels: Tensor


def eval_preprocessor(cfg: Config) -> dict:
    """Give the plain normalisation that belongs to a training config.

    Args:
        cfg (Config): A pre-training config.

    Returns:
        dict: Config of a data preprocessor.
    """
    keep = ['mean', 'std', 'to_rgb']
    kind = 'SelfSupDataPreprocessor'
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    images = dict(channels=len(preprocessor.get('mean') or [0] * 3),
                  dtype=preprocessor.get('dtype'))
    if not is_plain(images):
        keep += ['dtype', 'value_range']
        kind = 'ChannelDataPreprocessor'
    return dict(
        type=kind,
        **{k: v
           for k, v in preprocessor.items() if k in keep})


@torch.no_grad()
def extract_features(model: nn.Module,
                     preprocessor: nn.Module,
                     dataset: BaseDataset,
                     batch_size: int = 256,
                     num_workers: int = 2,
                     dtype: torch.dtype = torch.float32,
                     progress: bool = False,
                     **kwargs: Any) -> FeatureSet:
    """Extract one feature per image, on all processes together.

    No random number of a training that goes on is used up.

    Args:
        model (CMAE): A model with ``extract_feat(images, **kwargs)``.
        preprocessor (nn.Module): The data preprocessor, which normalises
            images.
        dataset (BaseDataset): A labelled data set.
        batch_size (int): Images in a batch of each process. Defaults to 256.
        num_workers (int): Data workers of each process. Defaults to 2.
        dtype (torch.dtype): The type in which features are kept. Defaults to
            float32.
        progress (bool): Whether to show how far it is. Defaults to False.
        **kwargs: Further arguments of ``extract_feat``: ``pool`` and
            ``encoder``.

    Returns:
        FeatureSet: Features and labels of all images, on each process and
        on the model's device.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    preprocessor = preprocessor.to(device)
    features, labels = [], []
    # Every process takes each n-th image; the last round is filled up.
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=DefaultSampler(dataset, shuffle=False, seed=0),
        num_workers=num_workers,
        collate_fn=default_collate,
        worker_init_fn=ignore_interrupts,
        generator=torch.Generator())
    with Progress(len(loader) * batch_size, 'features',
                  enabled=progress and is_main_process()) as shown:
        for batch in loader:
            images = preprocessor(batch)['inputs']
            features.append(model.extract_feat(images, **kwargs).to(dtype))
            labels += [int(s.gt_label) for s in batch['data_samples']]
            shown.update(batch_size)
    model.train(training)
    return FeatureSet(
        _gather(torch.cat(features), len(dataset)),
        _gather(torch.tensor(labels, device=device), len(dataset)))


def _gather(values: Tensor, count: int) -> Tensor:
    """Put the values of all processes in the data set's order."""
    return torch.stack(all_gather(values), dim=1).flatten(0, 1)[:count]


def hold_out(data: FeatureSet,
             every: int = 5) -> Tuple[FeatureSet, FeatureSet]:
    """Split one data set's features into training and validation ones.

    Args:
        data (FeatureSet): All features.
        every (int): Each n-th image is held out for validation. Defaults to 5.

    Returns:
        Tuple[FeatureSet, FeatureSet]: Those to train on, and those held out.
    """
    held_out = torch.arange(len(data.labels)) % every == 0
    return (FeatureSet(data.features[~held_out], data.labels[~held_out]),
            FeatureSet(data.features[held_out], data.labels[held_out]))


class _Images(Dataset):
    """Images of a source, cropped; or why one cannot be read."""

    def __init__(self, source: ImageSource, encoder: Any,
                 start: int, stop: int) -> None:
        self.source, self.encoder = source, encoder
        self.range = range(start, stop)

    def __len__(self) -> int:
        return len(self.range)

    def __getitem__(self, index: int) -> Tuple[str, Optional[Tensor], str]:
        number = self.range[index]
        name = storable(self.source.names[number])
        try:
            data = self.source.read(number)
            image = self.encoder.decode(data, encode_name(name))
            return name, self.encoder.crop(image), ''
        # Decoders raise all sorts of errors on broken files.
        except Exception as error:
            text = ' '.join(str(error).replace('\0', '').split())
            return name, None, text or type(error).__name__


def compute_features(model: Any, source: ImageSource,
             ranges: List[Tuple[int, int]], batch_size: int,
             num_workers: Optional[int], dtype: str,
             in_parts: bool) -> Iterator[Part]:
    """Yield the features of ranges of images in parts, or of each in one."""
    if num_workers is None:
        num_workers = min(8, cpu_count())
    left = sum(stop - start for start, stop in ranges)
    with Progress(len(source), 'features',
                  initial=len(source) - left) as progress:
        for start, stop in ranges:
            loader = DataLoader(
                _Images(source, model, start, stop),
                batch_size,
                num_workers=num_workers,
                worker_init_fn=ignore_interrupts,
                collate_fn=list)
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
    """A part that grows by batches."""

    def __init__(self, start: int, dtype: str) -> None:
        self.start = self.stop = start
        self.size = 0
        self._names: List[str] = []
        self._features = [np.zeros((0, ), dtype)]
        self._skipped: Dict[str, str] = {}

    def add(self, batch: List[Tuple[str, Optional[Tensor], str]],
            features: Optional[np.ndarray]) -> None:
        """Add a batch, and the features of the images that were read."""
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
        """Give the part."""
        features = self._features[1:] or self._features
        return Part(self.start, self.stop, self._names,
                    np.concatenate(features), self._skipped)


@torch.no_grad()
def _features(model: Any, images: List[Tensor],
              dtype: str) -> np.ndarray:
    batch = torch.stack(images).to(model.mean.device)
    return model(model.normalize(batch)).cpu().numpy().astype(dtype)
