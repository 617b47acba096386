"""Segmentation maps whose values are category ids, with gaps."""
import os.path as osp
from typing import Optional

import mmcv
import mmengine
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

UNLABELLED = 0


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

    def __init__(self, categories: str, data_root: Optional[str] = None,
                 **kwargs) -> None:
        if data_root is not None:
            categories = osp.join(data_root, categories)
        names = {int(k): v for k, v in mmengine.load(categories).items()}
        names.pop(UNLABELLED, None)
        self.ids = sorted(names)
        super().__init__(
            data_root=data_root,
            metainfo=dict(classes=tuple(names[i] for i in self.ids)),
            **kwargs)

    def load_data_list(self):
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
                f'segmentation map, the first one: {missing[0]}')
        for record in data_list:
            record['category_ids'] = self.ids
        return data_list


@TRANSFORMS.register_module()
class LoadCategoryMap(BaseTransform):
    """Load a PNG of category ids as a map of class numbers.

    **Required Keys:** seg_map_path and category_ids; in inference there are
    neither.

    **Added Keys:** gt_seg_map (np.uint8, (H, W); 255 is unlabelled)

    Args:
        backend_args (dict, optional): Arguments of mmengine's file backend.
            Defaults to None.

    Raises:
        ValueError: If a map is not of one channel, or has other values.
    """

    def __init__(self, backend_args: Optional[dict] = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Load the map at ``seg_map_path``."""
        if 'seg_map_path' not in results:  # an image without map: inference
            return results
        path, ids = results['seg_map_path'], results['category_ids']
        ids_map = mmcv.imfrombytes(
            fileio.get(path, backend_args=self.backend_args),
            flag='unchanged',
            backend='pillow').squeeze()
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
