"""Data sets of image files, with and without labels."""
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from .samplers import SeededIndex
from .source import IMG_EXTENSIONS, ImageSource, SourceError, open_source

_HINT = 'set the environment variable DATA_ROOT to a folder of images'


@DATASETS.register_module()
class PretrainingDataset(CustomDataset):
    """All images of a folder, a list, a store or shards, for pre-training.

    mmpretrain's ``CustomDataset``, by default without labels, for ImageNet's
    layout (``DATA_ROOT/train/<class>/*.jpg``), any number of class folders, a
    folder of images, a list file, an LMDB store of ``cmae store``, or shards
    of ``cmae shards``, see :func:`~cmae_mm.datasets.source.open_source`. Ten
    million names need about half a gigabyte of memory, shared by all workers.
    A list of paths is memory-mapped.

    Args:
        data_root (str): The data folder, or a list file.
        split (str | Sequence[str]): Split to read, a sub-folder or rows of a
            CSV file. If it does not exist, all images are used, which is
            logged. Defaults to 'train'.
        with_label (bool): Whether to read labels, from class folders or a
            list. Defaults to False.
        ann_file (str): A list file, in ``data_root`` unless absolute. Its
            paths are relative to ``data_root`` and ``data_prefix``, or to its
            folder if these are not given. Defaults to ''.
        data_prefix (str | dict): Sub-folder to read instead of ``split``.
            Defaults to ''.
        extensions (Sequence[str]): Endings of image files.
        **kwargs: Other arguments of ``CustomDataset``.

    Attributes:
        source (ImageSource): All images, with their names and labels.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If it has no images, a line of a list is wrong, or a store
            or a shard is damaged.
    """

    source: ImageSource
    _split_needed = False

    def __init__(self,
                 data_root: str = '',
                 split: str | Sequence[str] = 'train',
                 with_label: bool = False,
                 data_prefix: str | dict = '',
                 extensions: Sequence[str] = IMG_EXTENSIONS,
                 **kwargs) -> None:
        self._split = split
        self._prefix = os.path.expanduser(
            data_prefix if isinstance(data_prefix, str) else
            data_prefix.get('img_path', ''))
        super().__init__(
            data_root=os.path.expanduser(data_root),
            data_prefix=data_prefix,
            with_label=with_label,
            extensions=extensions,
            **kwargs)

    def load_data_list(self) -> Sequence[dict]:
        """List the images.

        Returns:
            Sequence[dict]: An ``ImageSource``, which creates records on demand
            and is not serialised.
        """
        self.serialize_data = False
        source = self.source = self.open()
        print_log(f'{source.describe()}.', logger='current')
        given = self.CLASSES
        if source.classes is not None and given is None:
            self._metainfo['classes'] = tuple(source.classes)
        elif source.classes is not None and (
                len(given) != len(source.classes)
                or sorted(given) == source.classes != list(given)):
            raise SourceError(
                f'the classes of {source.place} are {source.classes[:10]}, in '
                f'this order, but {list(given)[:10]} are given')
        return source

    def open(self) -> ImageSource:
        """Open the source given by the arguments."""
        split, prefix, data = self._split, self._prefix, self.data_root
        options: Any = dict(labels=self.with_label, extensions=self.extensions)
        if self.ann_file:
            root = self.img_prefix if data or prefix else None
            return open_source(self.ann_file, root=root, split=split,
                               **options)
        if prefix:
            data, split = (data, prefix) if data else (prefix, '')
        try:
            source = open_source(data, split=split, **options)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{error}; {_HINT}') from None
        if split and not source.split and (prefix or self._split_needed):
            raise FileNotFoundError(
                f'{data!r} has no folder '
                f'{split if isinstance(split, str) else " or ".join(split)}; '
                f'{_HINT} that has it')
        return source

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on a sample, with the seed of its index.

        The seed also decides which sample replaces one that cannot be loaded.
        Without a seed, mmengine draws the replacement.

        Args:
            idx (int): The sample; a ``SeededIndex`` has a seed.

        Returns:
            Any: The result; None if the sample cannot be loaded.
        """
        if not isinstance(idx, SeededIndex) or self.test_mode:
            return self._run_pipeline(idx)
        for number in range(self.max_refetch + 1):
            sample = self._run_pipeline(idx, is_replacement=number > 0)
            if sample is not None:
                return sample
            rng = np.random.default_rng(idx.seed)
            idx = SeededIndex(
                int(rng.integers(len(self))), int(rng.integers(2**63)))
        return None

    def _run_pipeline(self, idx: int, is_replacement: bool = False) -> Any:
        data_info = self.get_data_info(idx)
        if is_replacement:  # not counted again
            data_info['is_replacement'] = True
        if isinstance(idx, SeededIndex):
            data_info['view_seed'] = idx.seed
        return self.pipeline(data_info)


@DATASETS.register_module()
class LabelledDataset(PretrainingDataset):
    """Images with labels, from class folders or a list.

    Classes are numbered in the order of their sorted names. Whole numbers in
    a list are used as labels directly.

    Args:
        data_root (str): The data folder, a list file, a store or shards.
        data_prefix (str): Folder in it, with one folder of images per class.
        ann_file (str): List file with labels instead of class folders, in
            ``data_root`` unless absolute. Defaults to ''.
        split (str | Sequence[str]): The first of these splits that exists;
            one must. Defaults to '', all images.
        **kwargs: Other arguments of ``CustomDataset``.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there are no images, or no labels.
    """

    _split_needed = True

    def __init__(self,
                 data_root: str = '',
                 split: str | Sequence[str] = '',
                 **kwargs) -> None:
        super().__init__(data_root, split, **{'with_label': True, **kwargs})


def count_classes(dataset: BaseDataset) -> int:
    """Count the classes of a labelled data set.

    Args:
        dataset (BaseDataset): A data set of class folders or of a list.

    Returns:
        int: The number of classes, or the largest label plus one.

    Raises:
        ValueError: If there are no images, or images without labels.
    """
    if len(dataset) == 0:
        raise ValueError('there are no images')
    classes = dataset.metainfo.get('classes')
    checked = range(1 if classes else len(dataset))
    labels = {dataset.get_data_info(i).get('gt_label') for i in checked}
    if None in labels:
        raise ValueError(
            'there are images without labels; use class folders, or an '
            'annotation file with labels')
    return len(classes) if classes else max(labels) + 1
