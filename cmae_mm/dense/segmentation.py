"""Additions to mmsegmentation: category maps and checks before training.

``import cmae_mm`` does not import this. Configs do: ``custom_imports =
dict(imports=['cmae_mm.dense.segmentation'])``.
"""
# ruff: noqa: E402
from ..dependencies import require_dense

require_dense('mmseg', extra='seg')

import os.path as osp
from typing import Any

import mmcv
import mmengine
import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmengine import fileio
from mmengine.hooks import Hook
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, HOOKS, TRANSFORMS

from ..datasets.listing import evenly_spaced
from ..engine.device import unwrapped_model
from .dataset_checks import (MOST_IMAGES, check_channels, check_heads,
                             check_images_are_kept, datasets_of)

__all__ = ['CategoryMapDataset', 'ListedSegDataset', 'LoadCategoryMap',
           'SegmentationCheckHook']

UNLABELLED = 0
_HEADS = ('decode_head', 'auxiliary_head')


@DATASETS.register_module()
class CategoryMapDataset(BaseSegDataset):
    """Images and PNGs of category ids, as COCO's panoptic categories.

    Classes are numbered in the order of the ids; id 0 is unlabelled and takes
    part in neither loss nor metric. The pipeline needs ``LoadCategoryMap``.

    Args:
        categories (str): JSON file of ``{id: name}``, in ``data_root`` unless
            absolute.
        data_root (str, optional): The data folder. Defaults to None.
        **kwargs: Other arguments of ``BaseSegDataset``.

    Raises:
        ValueError: If there are no images, or images without a map.
    """

    def __init__(self, categories: str, data_root: str | None = None,
                 **kwargs: Any) -> None:
        if data_root is not None:
            categories = osp.join(data_root, categories)
        names = {int(k): v for k, v in mmengine.load(categories).items()}
        names.pop(UNLABELLED, None)
        self.ids = sorted(names)
        super().__init__(
            data_root=data_root,
            metainfo=dict(classes=tuple(names[i] for i in self.ids)),
            **kwargs)

    def load_data_list(self) -> list[dict]:
        """List images and maps."""
        data_list = super().load_data_list()
        if not data_list:
            raise ValueError(
                f'there are no images (*{self.img_suffix}) in '
                f'{self.data_prefix["img_path"]}; check data_prefix and '
                'DATA_ROOT')
        missing = [
            d['seg_map_path'] for d in data_list
            if not osp.isfile(d['seg_map_path'])
        ]
        if missing:
            raise ValueError(
                f'{len(missing)} of {len(data_list)} images have no '
                f'segmentation map, the first: {missing[0]}')
        for record in data_list:
            record['category_ids'] = self.ids
        return data_list


@DATASETS.register_module()
class ListedSegDataset(BaseSegDataset):
    """Images and masks from an annotation file of ``cmae finetune``.

    Args:
        ann_file (str): JSON file with ``metainfo.classes``,
            ``metainfo.label_map``, the class number of each value of the
            masks, and ``data_list``.
        **kwargs: Other arguments of ``BaseSegDataset``.
    """

    def __init__(self, ann_file: str, **kwargs: Any) -> None:
        self._listed = mmengine.load(ann_file)
        classes = tuple(self._listed['metainfo']['classes'])
        super().__init__(ann_file=ann_file, metainfo=dict(classes=classes),
                         **kwargs)

    def load_data_list(self) -> list[dict]:
        """List images and masks."""
        numbers = {int(value): number for value, number in
                   self._listed['metainfo']['label_map'].items()}
        return [dict(record, label_map=numbers, seg_fields=[],
                     reduce_zero_label=False)
                for record in self._listed['data_list']]


@TRANSFORMS.register_module()
class LoadCategoryMap(BaseTransform):
    """Load a PNG of category ids as a map of class numbers.

    **Required Keys:** seg_map_path and category_ids; in inference there are
    neither.

    **Added Keys:** gt_seg_map (np.uint8, (H, W); 255 is unlabelled)

    Raises:
        ValueError: If a map is not of one channel, or has other values.
    """

    def transform(self, results: dict) -> dict:
        """Load the map at ``seg_map_path``."""
        if 'seg_map_path' not in results:  # an image without map: inference
            return results
        path, ids = results['seg_map_path'], results['category_ids']
        ids_map = mmcv.imfrombytes(
            fileio.get(path), flag='unchanged', backend='pillow').squeeze()
        if ids_map.ndim != 2:
            raise ValueError(
                f'{path} must have one channel, category ids, but has the '
                f'shape {ids_map.shape}')
        unknown = np.setdiff1d(ids_map, [UNLABELLED, *ids])
        if len(unknown):
            raise ValueError(
                f'{path} has the values {unknown[:10].tolist()}, which are no '
                'category ids')
        numbers = np.full(max(ids) + 1, 255, np.uint8)
        numbers[ids] = np.arange(len(ids))
        results['gt_seg_map'] = numbers[ids_map]
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results


@HOOKS.register_module()
class SegmentationCheckHook(Hook):
    """Check images, maps and classes before a segmentor is trained.

    Up to 500 images and maps of each data set are read, evenly spaced.

    Raises:
        FileNotFoundError: If a data set names files that are not there.
        ValueError: If a data set is empty, the image loader would change an
            image, a map has values that are no class, or a head has another
            number of classes or takes other channels than a pyramid of maps
            has.
    """

    def before_train(self, runner: Any) -> None:
        """Check the heads, and training and validation data with them."""
        model = unwrapped_model(runner)
        # Without a neck, heads take the backbone's maps.
        check_channels(model, ('neck', ) if model.with_neck else _HEADS)
        for name, dataset in datasets_of(runner).items():
            if len(dataset) == 0:
                raise ValueError(f'the {name} data has no images')
            check_heads(name, dataset, model, _HEADS)
            self._check_maps(name, dataset)
            check_images_are_kept(name, dataset)

    def _check_maps(self, name: str, dataset: Any) -> None:
        # Only the loading transform knows the format of the maps.
        load = Compose([
            t for t in dataset.pipeline.transforms
            if type(t).__name__ in ('LoadAnnotations', 'LoadCategoryMap')
        ])
        count = len(dataset.metainfo['classes'])
        for i in evenly_spaced(len(dataset), MOST_IMAGES):
            record = dataset.get_data_info(i)
            for key in ('img_path', 'seg_map_path'):
                if '://' not in record[key] and not osp.isfile(record[key]):
                    raise FileNotFoundError(
                        f'the {name} data names {record[key]}, which does not '
                        'exist; check data_prefix and DATA_ROOT')
            values = np.unique(load(record)['gt_seg_map'])
            wrong = values[(values >= count)
                           & (values != dataset.ignore_index)]
            if len(wrong):
                raise ValueError(
                    f'{record["seg_map_path"]} has the values '
                    f'{wrong[:10].tolist()}, but there are {count} classes, '
                    f'from 0, and {dataset.ignore_index} for unlabelled '
                    'pixels')
