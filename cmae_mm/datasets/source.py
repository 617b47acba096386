"""Which images there are, in which order, under which names and labels.

A source is a folder, a list file, an LMDB store that ``cmae store`` wrote, or
shards of ``cmae shards``. Every command asks :func:`open_source`.

- A store is a folder with LMDB's ``data.mdb``, whose keys number the images,
  and ``images.txt``; ``store.json`` says what is in it.
- Shards are ``.tar`` files as the webdataset library writes and reads them,
  with ``shards.json``, which lists them, ``images.txt``, and ``places.npy``,
  where in which shard each image is. The library gives a stream, in which no
  image can be asked for; training asks for images by number, so that
  shuffling, seeds and resuming are those of a folder of files.

``images.txt`` has the images' names in their order, each encoded by
:func:`~cmae_mm.datasets.names.encode_name`. Labels of a list are in
``labels.npy``, and the names of their classes in the JSON file.
"""
import errno
import json
import os
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Union

import numpy as np
from mmengine import fileio
from mmengine.fileio import BaseStorageBackend, register_backend

from .folders import IMG_EXTENSIONS, FolderListing, LeftOut, is_hidden
from .lists import (
    SourceError,
    check_files,
    describe_kind,
    parse_labels,
    read_list,
)
from .names import FileNames, encode_name

# Files of stores and shards.
NAMES_FILE = 'images.txt'
STORE_FILE = 'data.mdb'
INDEX_FILE, PLACES_FILE = 'shards.json', 'places.npy'
# What else a store has, unless it is of an early version; labels of a list.
STORE_INDEX_FILE, LABELS_FILE = 'store.json', 'labels.npy'
PLACE = np.dtype([('offset', '<u8'), ('shard', '<u4'), ('size', '<u4')])
INDEX_VERSION = 1
# Shards that a process keeps open; each rank and worker has its own.
_MOST_OPEN = 64

PathLike = Union[str, 'os.PathLike[str]']


def store_key(number: int) -> str:
    """Give the key of a store's n-th image."""
    return f'{number:09d}'


def kind_of(data: PathLike) -> str:
    """Tell what kind of source a path is.

    Returns:
        str: 'folder', 'list', 'store' or 'shards'.

    Raises:
        FileNotFoundError: If there is no such file or folder.
    """
    path = os.path.expanduser(os.fspath(data))
    if os.path.isfile(os.path.join(path, INDEX_FILE)):
        return 'shards'
    if all(os.path.isfile(os.path.join(path, name))
           for name in (STORE_FILE, NAMES_FILE)):
        return 'store'
    if fileio.isdir(path):
        return 'folder'
    is_image = path.lower().endswith((*IMG_EXTENSIONS, '.tar'))
    if fileio.isfile(path) and not is_image:
        return 'list'
    what = 'is a dangling link' if os.path.islink(path) else 'does not exist'
    if os.path.exists(path):
        what = describe_kind(os.stat(path).st_mode) or 'is a single file'
    raise FileNotFoundError(
        f'{path!r} {what}; name a folder of images, a list of them, a store '
        'or shards')


def open_source(data: PathLike,
                *,
                split: Union[str, Sequence, None] = None,
                labels: bool = False,
                root: Optional[str] = None,
                extensions: Iterable[str] = IMG_EXTENSIONS,
                check: bool = True) -> 'ImageSource':
    """List the images of a folder, a list file, a store or shards.

    Args:
        data (str | PathLike): The folder or file.
        split (str | Sequence[str], optional): The first of these parts that
            there is, otherwise all images: a sub-folder of this name, or rows
            of a CSV file with this value in the column ``split``. Defaults to
            None, all images.
        labels (bool): Whether labels are needed: those of a list, or the
            numbers of the first folders in sorted order. Images outside of
            these folders are then left out. Defaults to False.
        root (str, optional): What relative paths in a list are relative to.
            Defaults to the list's folder.
        extensions (Iterable[str]): Endings of image files in folders.
        check (bool): Whether to check that the files in a list are there.
            Defaults to True.

    Returns:
        ImageSource: The images.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        SourceError: If there are no images or no labels, a line of a list is
            wrong, or a store or a shard is damaged.
    """
    kind, path = kind_of(data), _absolute(os.fspath(data))
    splits = [split] if isinstance(split, str) and split else split or []
    if kind == 'list':
        source = _open_list(path, splits, labels, root, check)
    elif kind == 'folder':
        source = _open_folder(path, splits, [e.lower() for e in extensions])
    else:
        source = _open_packed(kind, path, splits)
    if splits and not source.split:
        source.notes.append(f'without a part {" or ".join(splits)}')
    if not labels:
        source.labels = source.classes = None
    elif source.labels is None:
        _label_by_folder(source)
    if not len(source):
        if labels:
            source.notes.append('needed are class folders with images')
        raise SourceError(source.describe())
    return source


@dataclass(eq=False, repr=False)
class ImageSource(Sequence):
    """The images of a folder, a list, a store or shards, by number.

    As a sequence it has the records that mmengine's data sets begin with.

    Attributes:
        kind (str): 'folder', 'list', 'store' or 'shards'.
        root (str): What names are relative to; an absolute path.
        names (Sequence[str]): Names of the images, as ``os.fsdecode`` gives
            them.
        labels (np.ndarray | None): Class of each image, int64, (N, ).
        classes (List[str] | None): Names of the classes.
        split (str): The split that was taken, '' for all images.
        place (str): The file or folder that was opened.
        notes (List[str]): What there is to say about it.
        left_out (LeftOut): What is left out.
        folders (Sequence[str]): First folders, which may be empty.
        packed (Dict[str, str] | None): Arguments of the backend that reads
            the store or the shards.
        numbers (np.ndarray | None): Each image's number there.
    """

    kind: str
    root: str
    names: FileNames
    labels: Optional[np.ndarray] = None
    classes: Optional[List[str]] = None
    split: str = ''
    place: str = ''
    notes: List[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    folders: Sequence = ()
    packed: Optional[Dict[str, str]] = None
    numbers: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        return self.record(index)

    def __deepcopy__(self, memo: dict) -> 'ImageSource':
        return self  # nothing in it changes

    def path(self, index: int) -> str:
        """Give the path of an image, for messages and for opening files."""
        return fileio.join_path(self.root, self.names[index])

    def record(self, index: int) -> Dict[str, Any]:
        """Give an image as mmengine's data sets describe a sample.

        Returns:
            Dict[str, Any]: ``img_path``, which is the name alone in stores
            and shards, with ``img_key`` and ``backend_args`` beside it;
            ``gt_label`` where there are labels.
        """
        index = range(len(self))[index]
        if self.packed is None:
            record: Dict[str, Any] = dict(img_path=self.path(index))
        else:
            number = index if self.numbers is None else self.numbers[index]
            record = dict(
                img_path=self.names[index],
                img_key=store_key(number),
                backend_args=dict(self.packed))
        if self.labels is not None:
            record['gt_label'] = int(self.labels[index])
        return record

    def read(self, index: int) -> bytes:
        """Read an image's encoded file, see :func:`read_record`."""
        return read_record(self.record(index))

    def describe(self) -> str:
        """Say in one line what there is, and what is left out."""
        kind = '' if self.labels is None else 'labelled '
        place = encode_name(self.place)
        text = f'{len(self):,} {kind}images in {place}' if len(self) else (
            f'no {kind}images below {place}')
        if self.classes:
            text += f' of {len(self.classes):,} classes'
        return '; '.join(filter(None, [text, *self.notes, str(self.left_out)]))


def read_record(record: Dict[str, Any],
                backend_args: Optional[dict] = None) -> bytes:
    """Read the encoded file of a sample's record.

    Args:
        record (Dict[str, Any]): With ``img_path``, and ``img_key`` and
            ``backend_args`` in a store or in shards.
        backend_args (dict, optional): Those of records without their own.
            Defaults to None.

    Returns:
        bytes: The file.

    Raises:
        OSError: If it cannot be read, or is no regular file.
        SourceError: If the store or the shard is damaged.
    """
    backend_args = record.get('backend_args', backend_args)
    path = record.get('img_key', record['img_path'])
    if backend_args is None and _is_local(path):
        fault = describe_kind(os.stat(path).st_mode)
        if fault:  # reading a FIFO would wait for ever
            raise OSError(errno.EINVAL, fault, path)
    data = fileio.get(path, backend_args=backend_args)
    if data is None:  # as mmengine's backend of LMDB has it
        raise SourceError(f'{encode_name(record["img_path"])} is missing in '
                          'the store, which is damaged')
    return data


def _is_local(path: str) -> bool:
    return isinstance(fileio.get_file_backend(path, enable_singleton=True),
                      fileio.LocalBackend)


def _absolute(path: str) -> str:
    path = os.path.expanduser(path)
    return os.path.abspath(path) if _is_local(path) else path


def _open_list(path: str, splits: Sequence, labels: bool, root: Optional[str],
               check: bool) -> ImageSource:
    """Read a list file."""
    root = _absolute(root or os.path.dirname(path))
    found = read_list(path, root, splits)
    source = ImageSource('list', root, found.names, split=found.split,
                         place=path)
    if check and _is_local(root):
        source.notes.append(check_files(path, root, found))
    if labels:
        source.labels, source.classes = parse_labels(path, found)
    return source


def _open_folder(folder: str, splits: Sequence,
                 extensions: Sequence[str]) -> ImageSource:
    """List a folder, or its sub-folder of a split."""
    split = next((s for s in splits
                  if fileio.isdir(fileio.join_path(folder, s))), '')
    root = fileio.join_path(folder, split) if split else folder
    listing = FolderListing(root, extensions)
    if _is_local(root):
        names = FileNames.of(listing.groups())
    else:
        names = FileNames.of([listing.remote(fileio.list_dir_or_file(
            root, list_dir=False, recursive=True))])
    source = ImageSource(
        'folder', root, names, split=split, place=root,
        left_out=listing.left_out, folders=listing.folders)
    if not len(names) and listing.left_out.counts['.tar']:
        source.notes.append('`cmae shards` makes an index of .tar files')
    return source


def _open_packed(kind: str, folder: str, splits: Sequence) -> ImageSource:
    """Open a store or shards."""
    packed = dict(backend='lmdb', db_path=folder)
    index: Dict[str, Any] = {}
    if kind == 'shards':
        packed = dict(backend='ShardBackend', root=folder)
        index = read_shard_index(folder)
        count = index['images']
    else:
        count = _count_stored(os.path.join(folder, STORE_FILE), packed)
        path = os.path.join(folder, STORE_INDEX_FILE)
        with _naming(path):
            if os.path.isfile(path):
                index = json.loads(Path(path).read_text('utf-8'))
    path = os.path.join(folder, LABELS_FILE)
    labels = _load_array(path, '<i8') if os.path.isfile(path) else None
    path = os.path.join(folder, NAMES_FILE)
    with _naming(path):
        names = FileNames.of_lines(np.memmap(path, np.uint8, 'r'))
    if count != len(names):
        raise SourceError(f'{path} has {len(names):,} names, but there are '
                          f'{count:,} images: {folder} is damaged')
    source = ImageSource(kind, folder, names, labels, index.get('classes'),
                         packed=packed, place=folder)
    for split in splits:
        start, stop = (bisect_left(names, split + end) for end in '/0')
        found = np.arange(start, stop) if index.get('sorted', True) else (
            np.array([i for i, name in enumerate(names)
                      if name.startswith(f'{split}/')], int))
        if len(found):
            source.split, source.root = split, os.path.join(folder, split)
            source.numbers = found
            source.labels = None if labels is None else labels[found]
            source.names = names.select(found.tolist(), len(split) + 1)
            break
    return source


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in errors of reading a store or shards."""
    try:
        yield
    except (ImportError, SourceError):
        raise
    except Exception as error:  # LMDB has its own kinds
        raise SourceError(f'{path} cannot be read ({error}): it is damaged'
                          ) from error


def _count_stored(path: str, packed: Dict[str, str]) -> int:
    """Count a store's images; see that its file is whole."""
    # A process can open a file of LMDB once, so that this must be the client
    # of mmengine's backend.
    backend = fileio.get_file_backend(
        backend_args=dict(packed), enable_singleton=True)
    with _naming(path):
        if backend._client is None:
            backend._client = backend._get_client()
        found, last = backend._client.stat(), backend._client.info()
        size = os.path.getsize(path)
    needed = (last['last_pgno'] + 1) * found['psize']
    if size < needed:  # reading would kill the process
        raise SourceError(
            f'{path} has {size:,} bytes instead of {needed:,}: it is damaged; '
            'copy it again, or write it again with `cmae store`')
    return found['entries']


def _load_array(path: str, dtype: Any) -> np.ndarray:
    with _naming(path):
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    if array.dtype != dtype or array.ndim != 1:
        raise SourceError(f'{path} has other values than it should: it is '
                          'damaged')
    return array


def _label_by_folder(source: ImageSource) -> None:
    """Number the images' first folders; leave images outside of them out."""
    kept, folders = [], []
    for index, name in enumerate(source.names):
        folder, slash, _ = name.partition('/')
        if slash and not is_hidden(folder):
            kept.append(index)
            folders.append(folder)
        else:
            source.left_out.add('unlabelled image', name)
    if len(kept) < len(source):
        source.names = source.names.select(kept)
        numbers = source.numbers
        source.numbers = np.array(kept) if numbers is None else numbers[kept]
    source.classes = sorted({*folders, *source.folders})
    number = {name: i for i, name in enumerate(source.classes)}
    source.labels = np.array([number[name] for name in folders], np.int64)
    empty = sorted({*source.classes} - {*folders})
    if empty:
        source.notes.append(f'{len(empty):,} of them without images (first: '
                            f'{encode_name(empty[0])})')


def read_shard_index(folder: PathLike) -> Dict[str, Any]:
    """Read the index of a folder of shards.

    Args:
        folder (str | PathLike): The folder.

    Returns:
        Dict[str, Any]: ``images`` (their number), ``root`` (folder of the
        shards), ``shards`` (lists of name, number of images, bytes).

    Raises:
        SourceError: If it is of another version, or a shard is missing or of
            another size.
    """
    path = os.path.join(folder, INDEX_FILE)
    with _naming(path):
        index = json.loads(Path(path).read_text('utf-8'))
        version, shards = index['version'], index['shards']
        # Relative, so that the folder may be moved.
        index['root'] = os.path.normpath(
            os.path.join(folder, index.get('root', '.')))
    if version != INDEX_VERSION:
        raise SourceError(
            f'{path} is of version {version}, and this release reads version '
            f'{INDEX_VERSION}; write it anew with `cmae shards`')
    for name, _, size in shards:
        shard = Path(index['root']) / name
        found = shard.stat().st_size if shard.is_file() else None
        if found != size:
            what = 'is missing' if found is None else (
                f'has {found} bytes instead of {size}')
            raise SourceError(
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
        index = read_shard_index(root)
        self._paths = [
            os.path.join(index['root'], name) for name, *_ in index['shards']]
        self._places = _load_array(os.path.join(root, PLACES_FILE), PLACE)
        if len(self._places) != index['images']:
            raise SourceError(f'{root}: {PLACES_FILE} and {INDEX_FILE} do not '
                              'belong together')
        self._opened: OrderedDict[int, int] = OrderedDict()

    def get(self, filepath: str) -> Optional[bytes]:
        """Read an image.

        Args:
            filepath (str): Its number.

        Returns:
            bytes | None: The file; None if there is no image of this number.

        Raises:
            SourceError: If the shard ends before it does.
        """
        if int(filepath) >= len(self._places):
            return None
        offset, shard, size = self._places[int(filepath)].tolist()
        opened = self._opened.pop(shard, None)
        if opened is None:
            opened = os.open(self._paths[shard], os.O_RDONLY)
            if len(self._opened) >= _MOST_OPEN:
                os.close(self._opened.popitem(last=False)[1])
        self._opened[shard] = opened
        # Places are given along, so that forked processes may share a file.
        data = os.pread(opened, size, offset)
        if len(data) != size:
            raise SourceError(f'{self._paths[shard]} ends within image '
                              f'{filepath}: it is damaged')
        return data

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Read a text."""
        return (self.get(filepath) or b'').decode(encoding)
