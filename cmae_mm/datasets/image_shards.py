"""Images in webdataset shards, by number.

A folder of shards has ``shards.json``, which lists the ``.tar`` files,
``images.txt``, the images' names in their order, and ``places.npy``, where in
which shard each is. ``shards.json`` is written last: a folder without it is
not whole. The shards themselves are as the webdataset library writes and reads
them. The library gives a stream, in which no image can be asked for; training
asks for images by number, so that shuffling, seeds and resuming are those of a
folder of files.
"""
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Union

import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend

INDEX_NAME, LIST_NAME, PLACES_NAME = 'shards.json', 'images.txt', 'places.npy'
PLACE = np.dtype([('offset', '<u8'), ('shard', '<u4'), ('size', '<u4')])
VERSION = 1
# Shards that a process keeps open; each rank and worker has its own.
_MOST_OPEN = 64


class ShardError(ValueError):
    """Shards that cannot be written or are damaged; the message says why."""


def is_shards(folder: Union[str, Path]) -> bool:
    """Say whether a folder holds whole shards and their index."""
    return (Path(folder) / INDEX_NAME).is_file()


def read_index(folder: Union[str, Path]) -> Dict[str, Any]:
    """Read the index of a folder of shards.

    Args:
        folder (str | Path): The folder.

    Returns:
        Dict[str, Any]: ``images`` (their number), ``root`` (folder of the
        shards), ``shards`` (lists of name, number of images, bytes).

    Raises:
        ShardError: If it is of another version, or a shard is missing or of
            another size.
    """
    path = Path(folder) / INDEX_NAME
    try:
        index = json.loads(path.read_text('utf-8'))
        version = index['version']
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f'{path} is no index of shards ({error})') from error
    if version != VERSION:
        raise ShardError(
            f'{path} is of version {version}, and this release reads version '
            f'{VERSION}; write it anew with `cmae shards`')
    # Relative, so that the folder may be moved.
    index['root'] = os.path.normpath(Path(folder) / index.get('root', '.'))
    for name, _, size in index['shards']:
        shard = Path(index['root']) / name
        there = shard.stat().st_size if shard.is_file() else None
        if there != size:
            what = 'is missing' if there is None else (
                f'has {there} bytes instead of {size}')
            raise ShardError(
                f'{shard} {what}; copy it again, or write the shards anew '
                'with `cmae shards`')
    return index


@register_backend('ShardBackend', force=True)
class ShardBackend(BaseStorageBackend):
    """mmengine's file backend of the images in shards.

    Args:
        root (str): A folder of shards.
    """

    def __init__(self, root: str) -> None:
        index = read_index(root)
        self._paths = [
            os.path.join(index['root'], name) for name, *_ in index['shards']]
        self._places = np.load(Path(root) / PLACES_NAME, mmap_mode='r')
        self._opened: OrderedDict[int, int] = OrderedDict()

    def get(self, filepath: str) -> bytes:
        """Read an image.

        Args:
            filepath (str): Its number.

        Returns:
            bytes: The file.

        Raises:
            ShardError: If the shard ends before it does.
        """
        offset, shard, size = self._places[int(filepath)].tolist()
        # Places are given along, so that forked processes may share a file.
        data = os.pread(self._open(shard), size, offset)
        if len(data) != size:
            raise ShardError(f'{self._paths[shard]} ends within image '
                             f'{filepath}: it is damaged')
        return data

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Read a text."""
        return self.get(filepath).decode(encoding)

    def _open(self, shard: int) -> int:
        opened = self._opened.pop(shard, None)
        if opened is None:
            opened = os.open(self._paths[shard], os.O_RDONLY)
            if len(self._opened) >= _MOST_OPEN:
                os.close(self._opened.popitem(last=False)[1])
        self._opened[shard] = opened
        return opened
