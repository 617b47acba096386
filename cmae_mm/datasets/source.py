"""Sources of images: a folder, list file, LMDB store or shards.

:func:`open_source` opens a folder, a list file, an LMDB store of ``cmae
store``, or shards of ``cmae shards``.

- A store is a folder with ``data.mdb``, an LMDB file whose keys are image
  numbers, ``images.txt``, and ``store.json``, a description.
- Shards are ``.tar`` files of the webdataset library, with ``shards.json``, a
  list of the files, ``images.txt``, and ``places.npy``, the offset of each
  image. webdataset streams shards; here images are read by number, so
  shuffling, seeds and resuming are the same as for a folder.

``images.txt`` contains the names of the images in order, encoded by
:func:`~cmae_mm.datasets.names.encode_name`. ``labels.npy`` contains labels, if
there are any, and the JSON file the class names.
"""
import errno
import json
import os
import re
import signal
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.fileio import BaseStorageBackend, register_backend
from torch.utils.data import DataLoader, Dataset

from ..dependencies import cpu_count
from ..files import PathLike
from .listing import (IMG_EXTENSIONS, PART_NAMES, FolderListing, ImageList,
                      MissingSplit, SkippedFiles, SourceError, case_variants,
                      check_files, conversion_hint, describe_kind, is_hidden,
                      parse_labels, read_list)
from .names import FileNames, encode_name

# Files of stores and shards; early stores have the first two only.
STORE_FILE, NAMES_FILE = 'data.mdb', 'images.txt'
STORE_INDEX_FILE, LABELS_FILE = 'store.json', 'labels.npy'
INDEX_FILE, PLACES_FILE = 'shards.json', 'places.npy'
PLACE = np.dtype([('offset', '<u8'), ('shard', '<u4'), ('size', '<u4')])
INDEX_VERSION = 1
# Largest share of broken images by default.
MAX_BROKEN = 0.1
# Number of shards that a process keeps open.
_MOST_OPEN = 64
# Size in bytes of files to read in parts if possible.
_LARGE = 2**26
# Labels of rows without one.
_NO_LABEL = ('', 'nan', 'NaN')
# Smallest number of images worth starting processes for.
_FEW = 64


def store_key(number: int) -> str:
    """Return the key of a store's n-th image."""
    return f'{number:09d}'


def kind_of(data: PathLike) -> str:
    """Return the kind of a source.

    Args:
        data (str | PathLike): The folder or file.

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
    if os.path.isdir(path):
        return 'folder'
    way = conversion_hint(path)
    is_image = path.lower().endswith((*IMG_EXTENSIONS, '.tar'))
    if os.path.isfile(path) and not is_image and not way:
        return 'list'
    what = 'is a dangling link' if os.path.islink(path) else 'does not exist'
    if os.path.exists(path):
        what = describe_kind(os.stat(path).st_mode) or (
            f'is a single file ({way})' if way else 'is a single file')
    raise FileNotFoundError(
        f'{path!r} {what}; use a folder of images, a list file, a store or '
        'shards')


def open_source(data: PathLike,
                *,
                split: Any = None,
                labels: bool | str = False,
                root: str | None = None,
                extensions: Iterable[str] = IMG_EXTENSIONS,
                allow_missing: bool = False,
                strict: bool = False) -> 'ImageSource':
    """List the images of a folder, a list file, a store or shards.

    Args:
        data (str | PathLike): The folder or file.
        split (str | Sequence[str], optional): Splits in order of preference, a
            sub-folder or rows of a CSV file; the first existing one is used,
            otherwise all images. Names may be capitalised, and 'train', 'val'
            and 'test' have the synonyms of ``PART_NAMES``. Defaults to None,
            all images.
        labels (bool | str): Whether to read labels from a list or shards,
            otherwise from the top folders in sorted order; images outside of
            these folders are skipped. 'several' allows any number of labels
            per image in a list; 'all' reads labels of a list only if all rows
            have one. Defaults to False.
        root (str, optional): Folder of relative paths in a list. Defaults to
            the list's folder.
        extensions (Iterable[str]): Endings of image files in folders.
        allow_missing (bool): Whether some of the files in a list may be
            missing. Defaults to False.
        strict (bool): Whether a missing split is an error. Defaults to False.

    Returns:
        ImageSource: The images.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        MissingSplit: If there is no such split, and ``strict`` is set.
        SourceError: If there are no images or no labels, a line of a list is
            wrong, or a store or a shard is damaged.
    """
    kind = kind_of(data)
    path = os.path.abspath(os.path.expanduser(os.fspath(data)))
    words = [split] if isinstance(split, str) and split else split or []
    splits = case_variants(
        name for word in words for name in PART_NAMES.get(word, (word, )))
    missing = f'there is no part {" or ".join(words)}'
    if strict and kind == 'folder' and not any(
            os.path.isdir(os.path.join(path, s)) for s in splits):
        raise MissingSplit(missing)  # before all images are listed
    if kind == 'list':
        source = _open_list(path, splits, labels, root, allow_missing)
    elif kind == 'folder':
        source = _open_folder(path, splits, [e.lower() for e in extensions])
    else:
        source = _open_packed(kind, path, splits,
                              labels not in (False, 'all'))
    if splits and not source.split:
        if strict:
            raise MissingSplit(missing)
        source.notes.append(missing)
    if not labels:
        source.labels = source.classes = None
    elif source.labels is None and labels != 'all':
        _label_by_folder(source)
    if not len(source):
        if labels not in (False, 'all'):
            source.notes.append('class folders with images are required')
        raise SourceError(source.describe())
    folded: dict[str, str] = {}
    for name in source.classes or ():
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            source.notes.append(f'the classes {encode_name(other)} and '
                                f'{encode_name(name)} differ in case only')
            break
    return source


@dataclass(eq=False, repr=False)
class ImageSource(Sequence):
    """Images of a folder, a list, a store or shards, indexed by number.

    A sequence of records in the format of mmengine's data sets.

    Attributes:
        kind (str): 'folder', 'list', 'store' or 'shards'.
        root (str): Folder of relative names; an absolute path.
        names (FileNames): Names of the images, as ``os.fsdecode`` returns
            them.
        labels (np.ndarray | None): Class of each image, int64, (N, ); with
            several labels, a matrix of images and classes, bool, (N, K).
        classes (list[str] | None): Names of the classes.
        split (str): The split, '' for all images.
        place (str): The file or folder that was opened.
        notes (list[str]): Notes for the description.
        skipped (SkippedFiles): Skipped files.
        empty (Sequence[str]): Folders without images.
        packed (dict[str, str] | None): Arguments of the backend that reads
            the store or the shards.
        numbers (np.ndarray | None): Number of each image in it; None for all
            images.
    """

    kind: str
    root: str
    names: FileNames
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    split: str = ''
    place: str = ''
    notes: list[str] = field(default_factory=list)
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    empty: Sequence = ()
    packed: dict[str, str] | None = None
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        return self.record(index)

    def __deepcopy__(self, memo: dict) -> 'ImageSource':
        return self  # immutable

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.names[index])

    def record(self, index: int) -> dict[str, Any]:
        """Return an image as a sample of mmengine's data sets.

        Returns:
            dict[str, Any]: ``img_path``, in stores and shards the name only,
            with ``img_key`` and ``backend_args``; ``gt_label`` if there are
            labels, a list for several labels.
        """
        index = range(len(self))[index]
        if self.packed is None:
            record: dict[str, Any] = dict(img_path=self.path(index))
        else:
            number = index if self.numbers is None else self.numbers[index]
            record = dict(
                img_path=self.names[index],
                img_key=store_key(number),
                backend_args=dict(self.packed))
        if self.labels is not None:
            label = self.labels[index]
            record['gt_label'] = int(label) if label.ndim == 0 else (
                np.flatnonzero(label).tolist())
        return record

    def label_names(self, index: int) -> list[str]:
        """Return the names of an image's labels; integers have none."""
        label = self.record(index)['gt_label']
        return [self.classes[n] if self.classes else str(n) for n in (
            label if isinstance(label, list) else [label])]

    def read(self, index: int) -> bytes:
        """Read an image's encoded file, see :func:`read_record`."""
        return read_record(self.record(index))

    def open(self, index: int) -> bytes | Path:
        """Read an image's encoded file, see :func:`open_record`."""
        return open_record(self.record(index))

    def describe(self) -> str:
        """Describe the images and skipped files in one line."""
        kind = '' if self.labels is None else 'labelled '
        place = encode_name(self.place)
        text = f'{len(self):,} {kind}images in {place}' if len(self) else (
            f'no {kind}images below {place}')
        if self.classes:
            text += f' of {len(self.classes):,} classes'
        return '; '.join(filter(None, [text, *self.notes, str(self.skipped)]))


def read_record(record: dict[str, Any],
                backend_args: dict | None = None) -> bytes:
    """Read the encoded file of a sample.

    Args:
        record (dict[str, Any]): With ``img_path``, and ``img_key`` and
            ``backend_args`` in a store or in shards.
        backend_args (dict, optional): Arguments of the file backend for
            records without their own. Defaults to None, local files.

    Returns:
        bytes: The file.

    Raises:
        OSError: If it cannot be read, or is no regular file.
        SourceError: If the store or the shard is damaged.
    """
    path, packed = record['img_path'], record.get('backend_args')
    if packed is None:
        if backend_args is None:
            fault = describe_kind(os.stat(path).st_mode)
            if fault:  # reading a FIFO would block
                raise OSError(errno.EINVAL, fault, path)
        return fileio.get(path, backend_args=backend_args)
    with _naming(packed.get('db_path') or packed['root']):
        data = fileio.get(record['img_key'], backend_args=packed)
    if data is None:  # of mmengine's LMDB backend
        raise SourceError(f'{encode_name(record["img_path"])} is missing in '
                          'the store, which is damaged')
    return data


def open_record(record: dict[str, Any],
                backend_args: dict | None = None) -> bytes | Path:
    """Read the encoded file of a sample, unless it is a large local file.

    Args:
        record (dict[str, Any]): See :func:`read_record`.
        backend_args (dict, optional): See :func:`read_record`.

    Returns:
        bytes | Path: The file, or the path of a file of more than 64 MiB,
        which may be read in parts.
    """
    path = record['img_path']
    if record.get('backend_args', backend_args) is None and (
            os.path.isfile(path) and os.path.getsize(path) > _LARGE):
        return Path(path)
    return read_record(record, backend_args)


def _labelled_rows(path: str, found: ImageList) -> ImageList:
    """Select the rows of a list that have a label."""
    labels = found.labels or []
    kept = [i for i, label in enumerate(labels) if label not in _NO_LABEL]
    if len(kept) == len(labels):
        return found
    if not kept:
        place = f'the split {found.split!r} of {path}' if found.split else path
        raise SourceError(f'{place} has no labels; the column label is empty')
    return ImageList(
        found.names.select(kept), [found.lines[i] for i in kept],
        [labels[i] for i in kept], found.split,
        f'{len(labels) - len(kept):,} rows without a label')


def _open_list(path: str, splits: Sequence, labels: bool | str,
               root: str | None, allow_missing: bool) -> ImageSource:
    """Open a list file."""
    root = os.path.abspath(
        os.path.expanduser(root or os.path.dirname(path)))
    several = labels == 'several'
    found = read_list(path, root, splits, several)
    if labels is True and found.labels:
        found = _labelled_rows(path, found)
    source = ImageSource('list', root, found.names, split=found.split,
                         place=path, notes=[
                             check_files(path, root, found, allow_missing),
                             found.note and f'skipped: {found.note}'])
    if labels == 'all':
        missing = sum(label in _NO_LABEL for label in found.labels or ())
        labels = bool(found.labels) and not missing
        if missing:
            source.notes.append(
                f'labels are not read, since {missing:,} rows have none')
    if labels and found.labels is None:
        raise SourceError(
            f'{path} has no labels; use lines "<path> <label>", or a CSV file '
            'with the columns path and label; a column of 0 and 1 for each '
            'class is read by `cmae finetune --task multilabel`')
    if labels:
        source.labels, source.classes = parse_labels(
            found.labels or [], lambda i: f'{path}, line {found.lines[i]}',
            several)
    return source


def _open_folder(folder: str, splits: Sequence,
                 extensions: Sequence[str]) -> ImageSource:
    """List a folder, or its sub-folder of a split."""
    for name, other in ((STORE_FILE, STORE_INDEX_FILE),
                        (PLACES_FILE, NAMES_FILE)):
        if all(os.path.isfile(os.path.join(folder, n))
               for n in (name, other)):
            raise SourceError(
                f'{folder} has {name}, but is no complete store and no '
                'complete shards; write it again, with the same command')
    split = next((s for s in splits
                  if os.path.isdir(os.path.join(folder, s))), '')
    root = os.path.join(folder, split) if split else folder
    listing = FolderListing(root, extensions)
    source = ImageSource(
        'folder', root, FileNames.of(listing.groups()), split=split,
        place=root, skipped=listing.skipped, empty=listing.empty)
    if split and split != splits[0]:  # such as a class called Train
        # `cmae splits` writes the folder splits.
        known = [*case_variants(sum(PART_NAMES.values(), ())), 'splits']
        others = [entry.name for entry in os.scandir(folder) if entry.is_dir()
                  and entry.name not in known and not is_hidden(entry.name)]
        if others:
            source.notes.append(f'{len(others):,} other folders beside it are '
                                f'not read (first: {min(others)})')
    if not len(source) and listing.skipped.counts['.tar']:
        source.notes.append('create an index of the .tar files with `cmae '
                            'shards`')
    return source


def _open_packed(kind: str, folder: str, splits: Sequence,
                 labels: bool) -> ImageSource:
    """Open a store or shards."""
    if kind == 'shards':
        packed = dict(backend='ShardBackend', root=folder)
        index = read_shard_index(folder)
        count = index['images']
    else:
        packed = dict(backend='lmdb', db_path=folder)
        count = _count_stored(os.path.join(folder, STORE_FILE), packed)
        index = read_index(os.path.join(folder, STORE_INDEX_FILE))
    path = os.path.join(folder, NAMES_FILE)
    with _naming(path):
        names = FileNames.of_lines(np.memmap(path, np.uint8, 'r'))
    if count != len(names):
        raise SourceError(f'{path} has {len(names):,} names, but there are '
                          f'{count:,} images: {folder} is damaged')
    if labels and index.get('unlabelled'):
        raise SourceError(f'{folder} has no labels; add a .cls file for each '
                          'image to the shards')
    source = ImageSource(kind, folder, names, None, index.get('classes'),
                         empty=index.get('empty') or [], packed=packed,
                         place=folder)
    path = os.path.join(folder, LABELS_FILE)
    if os.path.isfile(path):
        source.labels = _load_array(path, '<i8', count)
        if source.classes and source.labels.max() >= len(source.classes):
            raise SourceError(f'{path} has more classes than the index: '
                              f'{folder} is damaged')
    for split, found in _find_splits(names, splits, index.get('sorted')):
        if len(found):
            source.split, source.root = split, os.path.join(folder, split)
            source.empty = [name[len(split) + 1:] for name in source.empty
                            if name.startswith(f'{split}/')]
            select_images(source, found, len(split) + 1)
            break
    return source


def _find_splits(names: FileNames, splits: Sequence, is_sorted: Any
                 ) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each split with the numbers of its images."""
    found: dict[str, list[int]] = {split: [] for split in splits}
    if not is_sorted and splits:
        start = re.compile(f'({"|".join(map(re.escape, splits))})/')
        for index, name in enumerate(names):
            match = start.match(name)
            if match:
                found[match[1]].append(index)
    for split in splits:
        yield split, np.arange(*(
            bisect_left(names, split + end) for end in '/0'
        )) if is_sorted else np.array(found[split], int)


def select_images(source: ImageSource, kept: Any, skip: int = 0) -> None:
    """Select images, and drop the first characters of their names.

    Args:
        source (ImageSource): The source, changed in place.
        kept (Sequence[int] | np.ndarray): Numbers of the images to keep.
        skip (int): Number of characters to drop. Defaults to 0.
    """
    kept = np.asarray(kept, int)
    source.names = source.names.select(kept.tolist(), skip)
    if source.labels is not None:
        source.labels = source.labels[kept]
    source.numbers = kept if source.numbers is None else source.numbers[kept]


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Add the file name to read errors of a store or shards."""
    try:
        yield
    except (ImportError, SourceError):
        raise
    except Exception as error:  # LMDB has its own errors
        raise SourceError(f'{path} cannot be read ({error}): it is damaged'
                          ) from error


def _count_stored(path: str, packed: dict[str, str]) -> int:
    """Count the images of a store; check that its file is complete."""
    # A process can open an LMDB file only once, so use the client of
    # mmengine's backend.
    backend = fileio.get_file_backend(
        backend_args=dict(packed), enable_singleton=True)
    with _naming(path):
        if backend._client is None:
            backend._client = backend._get_client()
        found, last = backend._client.stat(), backend._client.info()
        size = os.path.getsize(path)
    needed = (last['last_pgno'] + 1) * found['psize']
    if size < needed:  # reading would raise SIGBUS
        raise SourceError(
            f'{path} has {size:,} bytes instead of {needed:,}: it is damaged; '
            'copy or write it again (`cmae store`)')
    return found['entries']


def _load_array(path: str, dtype: Any, count: int) -> np.ndarray:
    with _naming(path):
        array = np.load(path, mmap_mode='r', allow_pickle=False)
        if array.dtype != dtype or array.shape != (count, ):
            raise ValueError(f'{array.dtype} of the shape {array.shape} '
                             f'instead of {count:,} values')
    return array


def _label_by_folder(source: ImageSource) -> None:
    """Number the first folders; skip images outside of them."""
    kept, folders = [], []
    for index, name in enumerate(source.names):
        folder, slash, _ = name.partition('/')
        if slash and not is_hidden(folder):
            kept.append(index)
            folders.append(folder)
        else:
            source.skipped.add('unlabelled image', name)
    if len(kept) < len(source):
        select_images(source, kept)
    empty = {name.split('/')[0] for name in source.empty} - {'', *folders}
    source.classes = sorted({*empty, *folders})
    number = {name: i for i, name in enumerate(source.classes)}
    source.labels = np.array([number[name] for name in folders], np.int64)
    if empty:
        source.notes.append(f'{len(empty):,} of them without images (first: '
                            f'{encode_name(min(empty))})')


def read_index(path: str) -> dict[str, Any]:
    """Read the JSON file of a store or of shards.

    Args:
        path (str): The file, missing in early stores.

    Returns:
        dict[str, Any]: Its content.

    Raises:
        SourceError: If it is damaged.
    """
    with _naming(path):
        if not os.path.isfile(path):
            return {}
        index = json.loads(Path(path).read_text('utf-8'))
        for name in ('classes', 'empty'):
            names = index.get(name) or []
            if not isinstance(names, list) or not all(
                    isinstance(v, str) for v in names):
                raise ValueError(f'{name!r} must be a list of names')
    return index


def read_shard_index(folder: PathLike) -> dict[str, Any]:
    """Read the index of a folder of shards.

    Args:
        folder (str | PathLike): The folder.

    Returns:
        dict[str, Any]: ``images`` (their number), ``root`` (folder of the
        shards), ``shards`` (lists of name, number of images, bytes).

    Raises:
        SourceError: If it is damaged or of another version, or a shard is
            missing or of another size.
    """
    path = os.path.join(folder, INDEX_FILE)
    index = read_index(path)
    with _naming(path):
        version, index['images'] = index['version'], int(index['images'])
        shards = [(str(name), int(count), int(size))
                  for name, count, size in index['shards']]
        # Relative, so that the folder may be moved.
        index['root'] = os.path.normpath(
            os.path.join(folder, index.get('root', '.')))
    if version != INDEX_VERSION:
        raise SourceError(
            f'{path} is of version {version}, but this release needs version '
            f'{INDEX_VERSION}; write it again with `cmae shards`')
    for name, _, size in shards:
        shard = Path(index['root']) / name
        found = shard.stat().st_size if shard.is_file() else None
        if found != size:
            what = 'is missing' if found is None else (
                f'has {found} bytes instead of {size}')
            raise SourceError(
                f'{shard} {what}; copy it again, or write the shards again '
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
        path = os.path.join(root, PLACES_FILE)
        self._places = _load_array(path, PLACE, index['images'])
        if self._places['shard'].max(initial=0) >= len(self._paths):
            raise SourceError(f'{path} and {INDEX_FILE} do not match')
        self._opened: OrderedDict[int, int] = OrderedDict()

    def get(self, filepath: str) -> bytes | None:
        """Read an image.

        Args:
            filepath (str): Its number.

        Returns:
            bytes | None: The file; None if there is no image of this number.

        Raises:
            SourceError: If the shard is truncated.
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
        # With the offset, so that forked processes may share a file.
        data = os.pread(opened, size, offset)
        if len(data) != size:
            raise SourceError(f'{self._paths[shard]} ends within image '
                              f'{filepath}: it is damaged')
        return data

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Read a text file."""
        return (self.get(filepath) or b'').decode(encoding)


def ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in a worker; the main process terminates its workers.

    Args:
        worker (int): Number of the worker, for ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Calls(Dataset):
    """Results of a function, by the position of its argument."""

    def __init__(self, function: Callable[[int], Any],
                 numbers: Sequence) -> None:
        self.function, self.numbers = function, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.function(int(self.numbers[index]))
        # DataLoader would wrap the error in a long text.
        except (OSError, ValueError, RuntimeError) as error:
            return error


def map_numbers(function: Callable[[int], Any],
                numbers: Sequence,
                num_workers: int | None = None) -> Iterator[Any]:
    """Call a function for each number, in several processes.

    Args:
        function (Callable): A function that can be pickled.
        numbers (Sequence[int]): Its arguments.
        num_workers (int, optional): Number of processes; 0 for this one.
            Defaults to one for each core, at most 8.

    Yields:
        Any: The results in the order of the numbers.

    Raises:
        Exception: Any error of a call.
    """
    if num_workers is None:
        num_workers = min(8, cpu_count())
    loader = DataLoader(
        _Calls(function, numbers), 8, collate_fn=list,
        num_workers=num_workers if len(numbers) > _FEW else 0,
        worker_init_fn=ignore_interrupts)
    for batch in loader:
        for result in batch:
            if isinstance(result, Exception):
                raise result
            yield result
