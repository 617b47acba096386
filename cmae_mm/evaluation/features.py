"""Features of a frozen model on a data set."""
from typing import Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS
from torch import nn
from torch.utils.data import DataLoader


def build_eval_dataset(data_root: str,
                       split: str,
                       img_size: int,
                       classes: Optional[tuple] = None) -> CustomDataset:
    """Build a labelled data set with the usual evaluation transforms.

    Args:
        data_root (str): Folder with ``<split>/<class>/*.jpg``.
        split (str): The sub-folder; '' takes ``data_root`` itself.
        img_size (int): Side of the centre crop in pixels; the short side is
            resized to 256/224 of it before.
        classes (tuple, optional): Class names. Defaults to the folders'.

    Returns:
        CustomDataset: The data set.
    """
    return DATASETS.build(
        dict(
            type='CustomDataset',
            data_root=data_root,
            data_prefix=split,
            classes=classes,
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(
                    type='ResizeEdge',
                    scale=round(img_size * 256 / 224),
                    edge='short',
                    backend='pillow',
                    interpolation='bicubic'),
                dict(type='CenterCrop', crop_size=img_size),
                dict(type='PackInputs'),
            ]))


def eval_preprocessor(cfg: Config) -> dict:
    """Give the plain normalisation that belongs to a training config."""
    keep = ('mean', 'std', 'to_rgb')
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    return dict(
        type='SelfSupDataPreprocessor',
        **{k: v
           for k, v in preprocessor.items() if k in keep})


@torch.no_grad()
def extract_features(model: nn.Module,
                     preprocessor: nn.Module,
                     dataset: CustomDataset,
                     batch_size: int = 256,
                     num_workers: int = 2,
                     **kwargs) -> Tuple[torch.Tensor, torch.Tensor]:
    """Extract one feature per image.

    Args:
        model (CMAE): Anything with ``extract_feat(images, **kwargs)``.
        preprocessor (nn.Module): Normalises images.
        dataset (CustomDataset): A labelled data set.
        batch_size (int): Defaults to 256.
        num_workers (int): Defaults to 2.
        **kwargs: Passed to ``extract_feat``: ``pool`` and ``encoder``.

    Returns:
        Tuple[torch.Tensor, torch.Tensor]: Features (N, D) and labels (N, ),
        on the model's device.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    preprocessor = preprocessor.to(device)
    features, labels = [], []
    loader = DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        collate_fn=default_collate)
    for batch in loader:
        images = preprocessor(batch)['inputs']
        features.append(model.extract_feat(images, **kwargs))
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
    model.train(training)
    return torch.cat(features), torch.tensor(labels, device=device)
