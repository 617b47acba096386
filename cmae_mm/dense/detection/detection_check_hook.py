"""Looks, before the first step, for data that a detector cannot learn."""
import os
from collections import defaultdict

import mmengine
from mmdet.datasets import CocoDataset
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ...engine.device import unwrapped_model
from ..checks import (
    check_channels,
    check_heads,
    check_images_are_kept,
    datasets_of,
)


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

    def before_train(self, runner) -> None:
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
    def _check_images(name: str, dataset) -> None:
        folders = defaultdict(list)
        for i in range(len(dataset)):
            path = dataset.get_data_info(i)['img_path']
            if '://' in path:
                return  # not on a disk
            folder, file = os.path.split(path)
            folders[folder].append(file)
        missing = []
        for folder, files in folders.items():
            there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            missing += [
                os.path.join(folder, f) for f in files if f not in there
            ]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of the {len(dataset)} images that the {name} '
                f'annotations name are not there, the first one: {missing[0]};'
                ' check data_prefix and DATA_ROOT')

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
                f"data's classes: {len(unknown)} of them are no class "
                f'({", ".join(unknown[:5])}), {len(absent)} classes are no '
                f'category ({", ".join(absent[:5])}); set dataset.metainfo='
                "dict(classes=...) and the heads' num_classes to the file's "
                'categories')
        # Labels are numbered by the file's order, names by the classes'.
        if categories != classes:
            raise ValueError(
                f'{dataset.ann_file} has the {name} data\'s classes in another'
                f' order ({", ".join(categories[:5])}...), so that labels '
                'would get wrong names; set dataset.metainfo=dict(classes=...)'
                " in the file's order")
