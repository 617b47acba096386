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
import hashlib
import json
import os
import stat
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
from mmengine import fileio
from mmengine.fileio import BaseStorageBackend, register_backend

from .folders import (
    IMG_EXTENSIONS,
    FolderListing,
    LeftOut,
    is_hidden,
    list_remote,
)
from .lists import (
    SourceError,
    check_files,
    describe_kind,
    parse_labels,
    read_list,
)
from .names import FileNames, decode_name, encode_name

__all__ = [
    'IMG_EXTENSIONS', 'ImageSource', 'ShardBackend', 'SourceError',
    'decode_name', 'encode_name', 'has_split', 'kind_of', 'open_source',
    'read_record', 'read_shard_index'
]

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
Groups = Iterable[List[str]]


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
    local = isinstance(_backend_of(path), fileio.LocalBackend)
    if fileio.isdir(path):
        if os.path.isfile(os.path.join(path, INDEX_FILE)):
            return 'shards'
        if all(os.path.isfile(os.path.join(path, name))
               for name in (STORE_FILE, NAMES_FILE)):
            return 'store'
        return 'folder'
    if fileio.isfile(path):
        return 'list'
    if local and os.path.exists(path):
        raise SourceError(f'{path} {describe_kind(os.stat(path).st_mode)}')
    what = 'is a link that leads nowhere or in a circle' if (
        os.path.islink(path)) else 'does not exist'
    raise FileNotFoundError(
        f'{path!r} {what}; name a folder of images, a list of them, a store '
        'or shards')


def open_source(data: PathLike,
                *,
                split: Optional[str] = None,
                labels: bool = False,
                root: Optional[str] = None,
                extensions: Iterable[str] = IMG_EXTENSIONS,
                check: bool = True) -> 'ImageSource':
    """List the images of a folder, a list file, a store or shards.

    Args:
        data (str | PathLike): The folder or file.
        split (str, optional): A part to take where there is one: a sub-folder
            of this name, or rows of a CSV file with this value in the column
            ``split``. Defaults to None, all images.
        labels (bool): Whether labels are needed: those of a list, or the
            first folders' numbers in sorted order. Images outside of class
            folders are then left out. Defaults to False.
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
    path = os.path.expanduser(os.fspath(data))
    kind = kind_of(path)
    if isinstance(_backend_of(path), fileio.LocalBackend):
        path = os.path.abspath(path)
    if kind == 'folder':
        return _open_folder(path, split, labels, tuple(
            ending.lower() for ending in extensions))
    if kind == 'list':
        return _open_list(path, split, labels, root, check)
    return _open_packed(kind, path, split, labels)


def has_split(data: PathLike, split: str) -> bool:
    """Tell whether a source has a part of this name, see open_source."""
    path = os.path.expanduser(os.fspath(data))
    kind = kind_of(path)
    if kind == 'folder':
        return fileio.isdir(fileio.join_path(path, split))
    if kind == 'list':
        try:
            return bool(open_source(path, split=split, check=False).split)
        except SourceError:
            return False
    return len(_find_split(_read_names(path), split, _read_index(kind, path))
               ) > 0


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
    """

    def __init__(self,
                 kind: str,
                 root: str,
                 names: 'Sequence[str]',
                 *,
                 labels: Optional[np.ndarray] = None,
                 classes: Optional[List[str]] = None,
                 split: str = '',
                 where: str = '',
                 note: str = '',
                 packed: Optional[Dict[str, str]] = None,
                 places: Optional[np.ndarray] = None) -> None:
        self.kind = kind
        self.root = root
        self.names = names
        self.labels = labels
        self.classes = classes
        self.split = split
        self._where = where or root
        self._note = note
        # Arguments of the backend that reads stores or shards, and which of
        # their images these are.
        self._packed = packed
        self._places = places
        self._backend = _backend_of(root)
        if not len(names):
            raise SourceError(f'no images below {encode_name(self._where)!r}'
                              f'{"; " if note else ""}{note}')

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
        return self._backend.join_path(self.root, self.names[index])

    def record(self, index: int) -> Dict[str, Any]:
        """Give an image as mmengine's data sets describe a sample.

        Returns:
            Dict[str, Any]: ``img_path``, which is the name alone in stores
            and shards, with ``img_key`` and ``backend_args`` beside it;
            ``gt_label`` where there are labels.
        """
        index = range(len(self))[index]
        record: Dict[str, Any] = dict(img_path=self.path(index))
        if self._packed is not None:
            number = index if self._places is None else int(
                self._places[index])
            record.update(
                img_path=self.names[index],
                img_key=store_key(number) if self.kind == 'store' else str(
                    number),
                backend_args=dict(self._packed))
        if self.labels is not None:
            record['gt_label'] = int(self.labels[index])
        return record

    def read(self, index: int) -> bytes:
        """Read an image's encoded file.

        Raises:
            OSError: If it cannot be read, or is no regular file.
            SourceError: If the store or the shard is damaged.
        """
        return read_record(self.record(index))

    def fingerprint(self) -> str:
        """Hash names, sizes and times of change, to see what has changed."""
        made = hashlib.sha256()
        if self._packed is not None:
            made.update(_state(os.path.join(
                self._where, STORE_FILE if self.kind == 'store' else
                INDEX_FILE)))
        for i, name in enumerate(self.names):
            made.update(os.fsencode(name) + b'\0')
            if self._packed is None:
                made.update(_state(self.path(i)))
        return made.hexdigest()

    def describe(self) -> str:
        """Say in one line what there is, and what is left out."""
        parts = [f'{len(self):,} images in {encode_name(self._where)}']
        if self.classes is not None:
            parts[0] += f' of {len(self.classes):,} classes'
        return '; '.join(parts + ([self._note] if self._note else []))


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
    if backend_args is None and isinstance(_backend_of(path),
                                           fileio.LocalBackend):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # reading a FIFO would wait for ever
            raise OSError(f'{encode_name(path)} {describe_kind(mode)}')
    data = fileio.get(path, backend_args=backend_args)
    if data is None:  # as mmengine's backend of LMDB has it
        raise SourceError(f'{encode_name(record["img_path"])} is missing in '
                          'the store, which is damaged')
    return data


def _state(path: str) -> bytes:
    try:
        found = os.stat(path)
    except OSError:  # of which reading it tells more
        return b'missing'
    return b'%d %d\0' % (found.st_size, found.st_mtime_ns)


def _backend_of(path: str) -> Any:
    return fileio.get_file_backend(path, enable_singleton=True)


def _open_folder(folder: str, split: Optional[str], labels: bool,
                 extensions: Tuple[str, ...]) -> ImageSource:
    """List a folder, or its sub-folder of a split."""
    backend = _backend_of(folder)
    inside = backend.join_path(folder, split) if split else folder
    found = split if split and backend.isdir(inside) else ''
    root = inside if found else folder
    counted: List[Tuple[str, int]] = []
    if isinstance(backend, fileio.LocalBackend):
        listing = FolderListing(root, extensions)
        left_out, groups = listing.left_out, listing.groups()
    else:
        left_out = LeftOut()
        images = list_remote(backend.list_dir_or_file(
            root, list_dir=False, recursive=True), extensions, left_out)
        groups = iter([[name] for name in images])
    names = FileNames.of(
        _in_folders(groups, counted, left_out) if labels else groups)
    numbers, classes = None, None
    if labels:
        folders = listing.folders if isinstance(
            backend, fileio.LocalBackend) else [top for top, _ in counted]
        numbers, classes = _number(counted, folders)
        empty = sorted({*classes} - {top for top, _ in counted})
    notes = [f'without a folder {split!r}'] if split and not found else []
    if labels and empty:
        notes.append(f'{len(empty):,} classes without images, such as '
                     f'{encode_name(empty[0])}')
    notes += [f'left out: {left_out}'] if str(left_out) else []
    if not len(names) and _has_shards(left_out):
        notes.append('`cmae shards` makes an index of .tar files')
    return ImageSource(
        'folder', root, names, labels=numbers, classes=classes, split=found,
        note='; '.join(notes))


def _has_shards(left_out: LeftOut) -> bool:
    return left_out.endings['.tar'] > 0


def _in_folders(groups: Groups, counted: List[Tuple[str, int]],
                left_out: LeftOut) -> Iterator[List[str]]:
    """Leave images outside of folders out; note the others' first folder."""
    for group in groups:
        top, slash, _ = group[0].partition('/')
        if slash and not is_hidden(top):
            counted.append((top, len(group)))
            yield group
        else:
            for name in group:
                left_out.add('unlabelled image', name)


def _number(counted: List[Tuple[str, int]],
            folders: Iterable[str]) -> Tuple[np.ndarray, List[str]]:
    """Number classes in the order of their sorted names."""
    classes = sorted(set(folders))
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[top] for top, _ in counted]
    return np.repeat(np.array(labels, np.int64),
                     [count for _, count in counted]), classes


def _open_list(path: str, split: Optional[str], labels: bool,
               root: Optional[str], check: bool) -> ImageSource:
    """Read a list file."""
    root = root or _backend_of(path).join_path(os.path.dirname(path))
    if isinstance(_backend_of(root), fileio.LocalBackend):
        root = os.path.abspath(os.path.expanduser(root))
    else:
        check = False
    found = read_list(path, root, split)
    note = check_files(path, root, found) if check else ''
    numbers, classes = None, None
    if labels:
        if found.labels is None:
            raise SourceError(
                f'{path} has no labels: needed are lines "<path> <label>", or '
                'a CSV file with the columns path and label')
        numbers, classes = parse_labels(path, found)
    return ImageSource(
        'list', root, found.names, labels=numbers, classes=classes,
        split=found.split, where=path, note=note)


def _open_packed(kind: str, folder: str, split: Optional[str],
                 labels: bool) -> ImageSource:
    """Open a store or shards."""
    names: Sequence = _read_names(folder)
    index = _read_index(kind, folder)
    if kind == 'store':
        packed = dict(backend='lmdb', db_path=folder)
        _check_store(folder, packed, len(names))
    else:
        packed = dict(backend='ShardBackend', root=folder)
        if index['images'] != len(names):
            raise SourceError(f'{folder}: {NAMES_FILE} and {INDEX_FILE} do '
                              'not belong together')
    places: Optional[np.ndarray] = None
    root, found = folder, ''
    chosen = _find_split(names, split, index) if split else (
        np.zeros(0, np.int64))
    if split and len(chosen):
        places, root, found = chosen, os.path.join(folder, split), split
        names = FileNames.of(
            [names[i][len(split) + 1:]] for i in chosen.tolist())
    numbers, classes = None, None
    left_out = LeftOut()
    own = os.path.join(folder, LABELS_FILE)
    if labels and os.path.isfile(own):
        numbers, classes = _load_array(own, '<i8'), index.get('classes')
        numbers = numbers if places is None else numbers[places]
    elif labels:
        counted: List[Tuple[str, int]] = []
        kept = np.array(['/' in name and not is_hidden(name.split('/')[0])
                         for name in names], bool)
        places = (np.arange(len(names)) if places is None else places)[kept]
        names = FileNames.of(_in_folders(
            ([name] for name in names), counted, left_out))
        numbers, classes = _number(counted, [top for top, _ in counted])
    return ImageSource(
        kind, root, names, labels=numbers, classes=classes, split=found,
        where=folder, note=f'left out: {left_out}' if str(left_out) else '',
        packed=packed, places=places)


def _read_names(folder: str) -> FileNames:
    path = os.path.join(folder, NAMES_FILE)
    if not os.path.isfile(path):
        raise SourceError(f'{path} is missing: the index is damaged')
    empty = not os.path.getsize(path)
    return FileNames.of_lines(
        np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, 'r'))


def _find_split(names: 'Sequence[str]', split: str,
                index: Dict[str, Any]) -> np.ndarray:
    """Find the images below a folder; their numbers."""
    if not index.get('sorted', True):
        return np.array([i for i, name in enumerate(names)
                         if name.startswith(f'{split}/')], np.int64)
    return np.arange(bisect_left(names, f'{split}/'), bisect_left(
        names, split + chr(ord('/') + 1)))


def _load_array(path: Any, dtype: Any) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f'{path} cannot be read ({error}): the index is '
                          'damaged') from error
    if array.dtype != dtype or array.ndim != 1:
        raise SourceError(f'{path} has other values than it should: the index '
                          'is damaged')
    return array


def _check_store(folder: str, packed: Dict[str, str], count: int) -> None:
    """Check that a store is whole and has as many images as names."""
    path = os.path.join(folder, STORE_FILE)
    # A process can open a file of LMDB once, so that this must be the client
    # of mmengine's backend.
    backend = fileio.get_file_backend(
        backend_args=dict(packed), enable_singleton=True)
    try:
        if backend._client is None:
            backend._client = backend._get_client()
        found, last = (backend._client.stat(),
                       backend._client.info()['last_pgno'])
    except ImportError:
        raise
    except Exception as error:  # LMDB has its own kinds
        raise SourceError(f'{path} cannot be read ({error}): it is damaged'
                          ) from error
    # Reading beyond the end of the file would kill the process.
    size, needed = os.path.getsize(path), (last + 1) * found['psize']
    if size < needed:
        raise SourceError(f'{path} has {size:,} bytes instead of {needed:,}: '
                          'it is damaged; copy it again, or write it again '
                          'with `cmae store`')
    if found['entries'] != count:
        raise SourceError(
            f'{folder}: {NAMES_FILE} has {count:,} names, but {STORE_FILE} '
            f'{found["entries"]:,} images; the store is damaged')


def _read_index(kind: str, folder: str) -> Dict[str, Any]:
    """Read the JSON file of a store or of shards."""
    if kind == 'shards':
        return read_shard_index(folder)
    path = Path(folder) / STORE_INDEX_FILE
    try:
        # Stores of earlier versions have none.
        return json.loads(path.read_text('utf-8')) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise SourceError(f'{path} cannot be read ({error}): the index is '
                          'damaged') from error


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
    path = Path(folder) / INDEX_FILE
    try:
        index = json.loads(path.read_text('utf-8'))
        version, shards = index['version'], index['shards']
        root = os.path.normpath(Path(folder) / index.get('root', '.'))
        index.update(root=root, images=int(index['images']))
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f'{path} is no index of shards ({error})') from error
    if version != INDEX_VERSION:
        raise SourceError(
            f'{path} is of version {version}, and this release reads version '
            f'{INDEX_VERSION}; write it anew with `cmae shards`')
    for name, _, size in shards:
        shard = Path(root) / name
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
        self._places = _load_array(Path(root) / PLACES_FILE, PLACE)
        if len(self._places) != index['images']:
            raise SourceError(f'{root}: {PLACES_FILE} and {INDEX_FILE} do not '
                              'belong together')
        self._opened: OrderedDict[int, int] = OrderedDict()

    def get(self, filepath: str) -> bytes:
        """Read an image.

        Args:
            filepath (str): Its number.

        Returns:
            bytes: The file.

        Raises:
            SourceError: If the shard ends before it does.
        """
        offset, shard, size = self._places[int(filepath)].tolist()
        # Places are given along, so that forked processes may share a file.
        data = os.pread(self._open(shard), size, offset)
        if len(data) != size:
            raise SourceError(f'{self._paths[shard]} ends within image '
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
