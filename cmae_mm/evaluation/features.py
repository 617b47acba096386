"""Features of a frozen model on a data set."""
from typing import Any, NamedTuple, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, DefaultSampler, default_collate
from mmengine.dist import all_gather, is_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets.source import ignore_interrupts
from ..image_config import is_plain
from ..progress import Progress


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
