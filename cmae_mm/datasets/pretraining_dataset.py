"""Images without labels, from any folder."""
import os
from functools import partial
from pathlib import Path
from typing import Any, Sequence, Union

import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from .file_names import FileNames, ImageRecords, list_files
from .image_folder import (
    IMG_EXTENSIONS,
    circular_links_explained,
    why_no_folder,
)
from .image_shards import LIST_NAME as SHARD_LIST
from .image_shards import is_shards, read_index
from .image_store import LIST_NAME, is_store, key_of
from .samplers import SeededIndex


@DATASETS.register_module()
class PretrainingDataset(CustomDataset):
    """All images below a folder, for pre-training.

    mmpretrain's ``CustomDataset``, without labels unless asked for, that
    takes ImageNet's layout (``DATA_ROOT/train/<class>/*.jpg``), any number of
    class folders, a plain folder of images, an annotation file, an LMDB store
    that ``cmae store`` wrote, or shards of ``cmae shards``. Without labels,
    ten million names take about half a gigabyte, which all workers share; a
    list in ``ann_file`` is not read into memory but mapped.

    Args:
        data_root (str): The data folder.
        split (str): The sub-folder to take where it exists; otherwise all
            images of ``data_root`` are taken, and the log says so. Defaults to
            'train'.
        with_label (bool): Whether class folders give labels. Defaults to
            False.
        ann_file (str): File with a path in each line, see ``CustomDataset``.
            Defaults to ''.
        data_prefix (str | dict): See ``CustomDataset``; given, ``split`` is
            not looked at. Defaults to ''.
        extensions (Sequence[str]): Endings of image files.
        **kwargs: Other arguments of ``CustomDataset``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, or shards are missing or damaged.
    """

    def __init__(self,
                 data_root: str = '',
                 split: str = 'train',
                 with_label: bool = False,
                 ann_file: str = '',
                 data_prefix: Union[str, dict] = '',
                 extensions: Sequence[str] = IMG_EXTENSIONS,
                 **kwargs) -> None:
        data_root = os.path.expanduser(data_root)
        self.in_store = is_store(data_root)
        self.in_shards = not self.in_store and is_shards(data_root)
        packed = self.in_store or self.in_shards
        if packed and (data_prefix or ann_file or with_label):
            what = 'is an LMDB store' if self.in_store else 'holds shards'
            raise ValueError(
                f'{data_root} {what}, which has images alone: leave '
                'data_prefix, ann_file and with_label out')
        if not packed and not data_prefix and not ann_file:
            if not fileio.isdir(data_root):
                raise FileNotFoundError(
                    f'the data folder {data_root!r} '
                    f'{why_no_folder(data_root)}; set the environment '
                    'variable DATA_ROOT to a folder of images, with or '
                    'without class folders')
            if split and fileio.isdir(fileio.join_path(data_root, split)):
                data_prefix = split
            else:
                print_log(
                    f'{data_root} has no folder {split!r}: taking all images '
                    'below it.',
                    logger='current')
        super().__init__(
            data_root=data_root,
            data_prefix=data_prefix,
            ann_file=ann_file,
            with_label=with_label,
            extensions=extensions,
            **kwargs)

    def load_data_list(self) -> Sequence[dict]:
        """List the images of a folder, an annotation file, or what is packed.

        Without labels it is a list of names in little memory, see
        ``FileNames``, that needs no serialising.
        """
        if self.with_label:
            return super().load_data_list()
        self.serialize_data = False
        if self.in_store:
            names = FileNames.of_lines(Path(self.data_root) / LIST_NAME)
            return ImageRecords(names, key_of=key_of)
        if self.in_shards:
            read_index(self.data_root)  # are all there?
            names = FileNames.of_lines(Path(self.data_root) / SHARD_LIST)
            return ImageRecords(names, key_of=str)
        if self.ann_file:
            names = FileNames.of_lines(self.ann_file)
            if not len(names):
                raise ValueError(f'{self.ann_file} names no images: it needs '
                                 'a path in each line')
        else:
            names = self._find_samples()
        backend = fileio.get_file_backend(
            self.img_prefix, enable_singleton=True)
        return ImageRecords(names, partial(backend.join_path,
                                           self.img_prefix))

    def get_data_info(self, idx: int) -> dict:
        """Get a sample's record, and where it is packed if it is."""
        data_info = super().get_data_info(idx)
        if self.in_store:
            data_info['backend_args'] = dict(
                backend='lmdb', db_path=self.data_root)
        elif self.in_shards:
            data_info['backend_args'] = dict(
                backend='ShardBackend', root=self.data_root)
        return data_info

    def _find_samples(self):
        """Find samples, and say clearly when there are none."""
        backend = fileio.get_file_backend(
            self.img_prefix, enable_singleton=True)
        local = isinstance(backend, fileio.LocalBackend)
        try:
            with circular_links_explained(self.img_prefix):
                if self.with_label or not local:
                    samples = super()._find_samples()
                    return samples if self.with_label else FileNames.of(
                        iter([samples]))
                names = FileNames.of(
                    list_files(self.img_prefix, self.is_valid_file))
            if not len(names):
                raise RuntimeError
            return names
        except RuntimeError as error:
            raise ValueError(
                f'no images below {self.img_prefix!r}; set the environment '
                'variable DATA_ROOT to a folder of images (endings: '
                f'{", ".join(sorted(self.extensions))})') from error

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on a sample, with the seed that its index has.

        What takes the place of a sample that cannot be loaded follows from
        that sample's seed. (An index without seed is left to mmengine, which
        draws another one from numpy's generator.)

        Args:
            idx (int): The sample; a ``SeededIndex`` has a seed.

        Returns:
            Any: What the pipeline makes of it; None if it cannot be loaded.
        """
        if not isinstance(idx, SeededIndex) or self.test_mode:
            return self._run_pipeline(idx)
        for _ in range(self.max_refetch + 1):
            sample = self._run_pipeline(idx)
            if sample is not None:
                return sample
            rng = np.random.default_rng(idx.seed)
            idx = SeededIndex(
                int(rng.integers(len(self))), int(rng.integers(2**63)))
        return None

    def _run_pipeline(self, idx: int) -> Any:
        data_info = self.get_data_info(idx)
        if isinstance(idx, SeededIndex):
            data_info['view_seed'] = idx.seed
        return self.pipeline(data_info)
