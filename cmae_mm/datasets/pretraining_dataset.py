"""Images without labels, from any folder."""
import errno
import os
from pathlib import Path
from typing import Any, Sequence, Union

import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from .image_store import is_store, key_of, read_list
from .samplers import SeededIndex

IMG_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif',
                  '.tiff', '.webp')


def _what_it_is(path: str) -> str:
    """Say why a path is no folder."""
    if os.path.islink(path) and not os.path.exists(path):
        return 'is a symbolic link that leads nowhere or in a circle'
    return 'is a file' if os.path.exists(path) else 'does not exist'


def _shortest_circle(path: Any) -> str:
    """Find the link that a path has followed again and again."""
    place = Path(str(path))
    links = [p for p in (*reversed(place.parents), place) if p.is_symlink()]
    return str(links[0]) if links else str(path)


@DATASETS.register_module()
class PretrainingDataset(CustomDataset):
    """All images below a folder, for pre-training.

    mmpretrain's ``CustomDataset``, without labels unless asked for, that
    takes ImageNet's layout (``DATA_ROOT/train/<class>/*.jpg``), any number of
    class folders, a plain folder of images, an annotation file, or an LMDB
    store that ``cmae store`` wrote.

    Args:
        data_root (str): The data folder.
        split (str): The sub-folder to take where it exists; otherwise all
            images of ``data_root`` are taken, and the log says so. Defaults to
            'train'.
        with_label (bool): Whether class folders give labels. Defaults to
            False.
        ann_file (str): See ``CustomDataset``. Defaults to ''.
        data_prefix (str | dict): See ``CustomDataset``; given, ``split`` is
            not looked at. Defaults to ''.
        extensions (Sequence[str]): Endings of image files.
        **kwargs: Other arguments of ``CustomDataset``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images.
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
        if self.in_store and (data_prefix or ann_file or with_label):
            raise ValueError(
                f'{data_root} is an LMDB store, which has images alone: leave '
                'data_prefix, ann_file and with_label out')
        if not self.in_store and not data_prefix and not ann_file:
            if not fileio.isdir(data_root):
                raise FileNotFoundError(
                    f'the data folder {data_root!r} {_what_it_is(data_root)}; '
                    'set the environment variable DATA_ROOT to a folder of '
                    'images, with or without class folders')
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

    def load_data_list(self):
        """List the images, of a folder, an annotation file, or a store."""
        if not self.in_store:
            return super().load_data_list()
        return [
            dict(img_path=path, img_key=key_of(i))
            for i, path in enumerate(read_list(self.data_root))
        ]

    def get_data_info(self, idx: int) -> dict:
        """Get a sample's record, and where its store is if it is in one."""
        data_info = super().get_data_info(idx)
        if self.in_store:
            data_info['backend_args'] = dict(
                backend='lmdb', db_path=self.data_root)
        return data_info

    def _find_samples(self):
        """Find samples, and say clearly when there are none."""
        try:
            return super()._find_samples()
        except RuntimeError as error:
            raise ValueError(
                f'no images below {self.img_prefix!r}; set the environment '
                'variable DATA_ROOT to a folder of images (endings: '
                f'{", ".join(sorted(self.extensions))})') from error
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise ValueError(
                f'a symbolic link below {self.img_prefix!r} leads in a circle '
                f'({_shortest_circle(error.filename)}); remove it') from None

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on a sample, with the seed that its index has."""
        data_info = self.get_data_info(idx)
        self._drawn = idx
        if isinstance(idx, SeededIndex):
            data_info['view_seed'] = idx.seed
        return self.pipeline(data_info)

    def _rand_another(self) -> int:
        """Draw a sample in place of one that cannot be loaded."""
        if not isinstance(self._drawn, SeededIndex):
            return super()._rand_another()
        rng = np.random.default_rng(self._drawn.seed)
        return SeededIndex(
            int(rng.integers(len(self))), int(rng.integers(2**63)))
