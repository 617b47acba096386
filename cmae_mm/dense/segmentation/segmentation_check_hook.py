"""Looks, before the first step, for data that a segmentor cannot learn."""
import os.path as osp

import numpy as np
from mmcv.transforms import Compose
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from ...engine.device import unwrapped_model
from ..checks import (
    check_channels,
    check_heads,
    check_images_are_kept,
    datasets_of,
)

_HEADS = ('decode_head', 'auxiliary_head')


@HOOKS.register_module()
class SegmentationCheckHook(Hook):
    """Check images, maps and classes before a segmentor is trained.

    Args:
        max_maps (int): Number of maps of each data set that are looked at,
            evenly spaced. Defaults to 500.

    Raises:
        FileNotFoundError: If a data set names files that are not there.
        ValueError: If a data set is empty, the image loader would change an
            image (of up to 500 that are compared), a map has values that are
            no class, or a head has another number of classes or takes other
            channels than a pyramid of maps has.
    """

    def __init__(self, max_maps: int = 500) -> None:
        self.max_maps = max_maps

    def before_train(self, runner) -> None:
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

    def _check_maps(self, name: str, dataset) -> None:
        # What loads maps is the one transform that knows their format.
        load = Compose([
            t for t in dataset.pipeline.transforms
            if type(t).__name__ in ('LoadAnnotations', 'LoadCategoryMap')
        ])
        count = len(dataset.metainfo['classes'])
        places = np.linspace(
            0, len(dataset) - 1, min(len(dataset), self.max_maps))
        for i in places.astype(int):
            record = dataset.get_data_info(int(i))
            for key in ('img_path', 'seg_map_path'):
                if '://' not in record[key] and not osp.isfile(record[key]):
                    raise FileNotFoundError(
                        f'the {name} data names {record[key]}, which is not '
                        'there; check data_prefix and DATA_ROOT')
            values = np.unique(load(record)['gt_seg_map'])
            wrong = values[(values >= count)
                           & (values != dataset.ignore_index)]
            if len(wrong):
                raise ValueError(
                    f'{record["seg_map_path"]} has the values '
                    f'{wrong[:10].tolist()}, but there are {count} classes, '
                    f'from 0, and {dataset.ignore_index} for unlabelled '
                    'pixels')
