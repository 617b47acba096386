"""Additions to mmdetection: float32 parts and checks before training.

``import cmae_mm`` does not import this. Configs do: ``custom_imports =
dict(imports=['cmae_mm.dense.detection'])``.
"""
# ruff: noqa: E402
from ..dependencies import require_dense

require_dense('mmdet', extra='det')

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import mmengine
from mmdet.datasets import CocoDataset
from mmdet.models.dense_heads import RPNHead
from mmdet.models.necks import FPN
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from torch import Tensor

from ..engine.device import unwrapped_model
from .dataset_checks import (check_channels, check_heads,
                             check_images_are_kept, datasets_of)

__all__ = ['DetectionCheckHook', 'Float32FPN', 'Float32RPNHead']


@MODELS.register_module()
class Float32FPN(FPN):
    """mmdetection's ``FPN`` with levels in float32.

    Boxes are cast to the dtype of the features. bfloat16 would round them to
    whole pixels or worse.
    """

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs (Sequence[Tensor]): Feature maps, (N, C, H, W), each of
                half the size of the one before.

        Returns:
            tuple[Tensor, ...]: The levels, (N, D, H, W) and less, in float32.
        """
        return tuple(level.float() for level in super().forward(inputs))


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """mmdetection's ``RPNHead`` with float32 scores and offsets.

    bfloat16 would round the scores of thousands of anchors to a few hundred
    values before ranking, and mmcv's NMS does not support it on every device.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score one level.

        Args:
            x (Tensor): Features, (N, C, H, W).

        Returns:
            tuple[Tensor, Tensor]: Scores (N, A, H, W) and box offsets
            (N, 4A, H, W) of A anchors, in float32.
        """
        scores, offsets = super().forward_single(x)
        return scores.float(), offsets.float()


@HOOKS.register_module()
class DetectionCheckHook(Hook):
    """Check images, categories and classes before a detector is trained.

    Raises:
        FileNotFoundError: If annotations name images that are not there.
        ValueError: If a data set is empty, the image loader would change an
            image (of up to 500 that are compared), annotated categories are
            not the data set's classes, a head has another number of them, or
            the neck takes other channels than a pyramid of maps has.
    """

    def before_train(self, runner: Any) -> None:
        """Check the neck, and training and validation data with the heads."""
        model = unwrapped_model(runner)
        check_channels(model, ('neck', ))
        owner = getattr(model, 'roi_head', None) or model
        for name, dataset in datasets_of(runner).items():
            if len(dataset) == 0:
                raise ValueError(
                    f'the {name} data has no images with annotations')
            self._check_images(name, dataset)
            check_images_are_kept(name, dataset)
            if isinstance(dataset, CocoDataset):
                self._check_categories(name, dataset)
            check_heads(name, dataset, owner, ('bbox_head', 'mask_head'))

    @staticmethod
    def _check_images(name: str, dataset: Any) -> None:
        folders: dict[str, list[str]] = defaultdict(list)
        for i in range(len(dataset)):
            path = dataset.get_data_info(i)['img_path']
            if '://' in path:
                return  # not a local file
            folder, file = os.path.split(path)
            folders[folder].append(file)
        missing: list[str] = []
        for folder, files in folders.items():
            there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            missing += [
                os.path.join(folder, f) for f in files if f not in there
            ]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(dataset)} images in the {name} '
                f'annotations do not exist (first: {missing[0]}); check '
                'data_prefix and DATA_ROOT')

    @staticmethod
    def _check_categories(name: str, dataset: CocoDataset) -> None:
        classes = list(dataset.metainfo['classes'])
        categories = [
            c['name'] for c in mmengine.load(dataset.ann_file)['categories']
        ]
        unknown = sorted(set(categories) - set(classes))
        absent = sorted(set(classes) - set(categories))
        if unknown or absent:
            raise ValueError(
                f'the categories of {dataset.ann_file} are not the {name} '
                f"data's classes: {len(unknown)} of them are not a class "
                f'({", ".join(unknown[:5])}), {len(absent)} classes are no '
                f'category ({", ".join(absent[:5])}); set '
                "dataset.metainfo=dict(classes=...) and the heads' "
                "num_classes to the file's categories")
        # Labels are numbered by the file's order, names by the classes'.
        if categories != classes:
            raise ValueError(
                f'{dataset.ann_file} has the {name} data\'s classes in another'
                f' order ({", ".join(categories[:5])}...), so that labels '
                'would get wrong names; set dataset.metainfo=dict(classes=...)'
                " in the file's order")
