"""Putting images into webdataset shards; needs extra='webdataset'."""
import hashlib
import json
import multiprocessing
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np

from ..packaged import install_command
from .names import FileNames
from .shrinking import shrink
from .source import (
    INDEX_FILE,
    INDEX_VERSION,
    NAMES_FILE,
    PLACE,
    PLACES_FILE,
    ImageSource,
    SourceError,
    encode_name,
    kind_of,
    open_source,
    read_record,
)

_PLAN = 'shards.partial.json'
_SHARD = 'shard-{:06d}.tar'


def write_shards(source: Path,
                 folder: Path,
                 extensions: Tuple[str, ...],
                 images_per_shard: int = 2000,
                 short_side: Optional[int] = None,
                 num_workers: int = 0) -> Iterator[Tuple[int, int]]:
    """Write all images below a folder into shards, and verify them.

    Their order is that in which a data set lists the folder. Interrupted and
    called again with the same arguments, it goes on after the last whole
    shard. Files are copied bit by bit unless ``short_side`` is set. Where the
    folder has ``.tar`` files and no images, these are the shards: they are
    read once, for their index alone, and stay where they are.

    Args:
        source (Path): Folder of images, or of shards.
        folder (Path): Where shards and index go.
        extensions (Tuple[str, ...]): Endings of image files.
        images_per_shard (int): Number of images in a shard. Defaults to 2000.
        short_side (int, optional): Make the shorter side of larger images
            this long, in pixels. Defaults to None.
        num_workers (int): Number of processes that read (and shrink) images;
            0 for none but this one. Defaults to 0.

    Yields:
        Tuple[int, int]: Images done, of all; each is counted twice, once
        written and once verified.

    Raises:
        SourceError: If there are no images, the folder holds something else,
            or what was written does not read back.
        ImportError: If the webdataset library is not installed.
    """
    _need_webdataset()
    if folder.exists() and kind_of(folder) == 'shards':
        raise SourceError(f'{folder} holds whole shards already; delete it to '
                         'write them anew')
    if kind_of(source) == 'shards':
        raise SourceError(f'{source} holds shards and their index already: '
                         'train on it as it is, or give a folder of images')
    try:
        images = open_source(source, extensions=extensions)
        names = images.names
    except SourceError:
        yield from _index_shards(Path(os.path.abspath(source)), folder,
                                 extensions)
        return
    plan = dict(images=len(names), names=_digest(names),
                images_per_shard=images_per_shard, short_side=short_side)
    _begin(folder, plan)
    parts = [(start, min(start + images_per_shard, len(names)))
             for start in range(0, len(names), images_per_shard)]
    read = partial(_read, images, short_side)
    total, done = 2 * len(names), 0
    with _pool(num_workers) as pool:
        for number, (start, end) in enumerate(parts):
            path = folder / _SHARD.format(number)
            if not path.exists():
                wanted = [names[i] for i in range(start, end)]
                _write_shard(path, start, wanted,
                             _map(pool, read, wanted))
            done = end
            yield done, total
        for number, (start, end) in enumerate(parts):
            path = folder / _SHARD.format(number)
            kept = _places_of(path)
            if not kept.exists():
                wanted = [names[i] for i in range(start, end)]
                digests = _map(pool, partial(_digest_of, read), wanted)
                _verify_shard(path, start, wanted, digests)
                _save(kept, _find_places(path, number, extensions)[0])
            done += end - start
            yield done, total
    shards = [folder / _SHARD.format(n) for n in range(len(parts))]
    _finish(folder, '.', shards, [end - start for start, end in parts],
            (names[i] for i in range(len(names))))


def _need_webdataset() -> None:
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        command = install_command(extra='webdataset')
        raise ImportError(
            'shards are written and verified by the webdataset library, which '
            'is not installed: install it with '
            f'`{command}`') from error


def _begin(folder: Path, plan: Dict[str, Any]) -> None:
    """Note what is being written, or go on with it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _PLAN
    if path.exists():
        if json.loads(path.read_text('utf-8')) != plan:
            raise SourceError(
                f'{folder} was begun with other images or settings; delete it '
                'to begin anew')
    elif any(folder.iterdir()):
        raise SourceError(f'{folder} is not empty and holds no shards')
    else:
        path.write_text(json.dumps(plan), 'utf-8')


def _digest(names: Sequence[str]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for i in range(len(names)):
        made.update(os.fsencode(names[i]) + b'\n')
    return made.hexdigest()


def _read(images: ImageSource, short_side: Optional[int],
          name: str) -> bytes:
    data = read_record(dict(img_path=os.path.join(images.root, name)))
    return shrink(data, short_side, name)


def _digest_of(read: Callable[[str], bytes], name: str) -> bytes:
    return hashlib.blake2b(read(name), digest_size=16).digest()


def _pool(num_workers: int) -> ContextManager:
    if num_workers:
        return multiprocessing.get_context('fork').Pool(num_workers)
    return open(os.devnull)  # something to leave


def _map(pool: Any, function: Callable, names: List[str]) -> Iterator:
    if hasattr(pool, 'imap'):
        return pool.imap(function, names, chunksize=16)
    return map(function, names)


def _write_shard(path: Path, start: int, names: List[str],
                 contents: Iterator[bytes]) -> None:
    """Write a shard that has its name when it is on disk."""
    import webdataset

    partial_path = path.with_name(f'.{path.name}.partial')
    with open(partial_path, 'wb') as file:
        # Of one time, so that the same images make the same shard.
        writer = webdataset.TarWriter(file, encoder=False, mtime=0)
        for number, (name, data) in enumerate(zip(names, contents), start):
            path_in_it = json.dumps(dict(path=name)).encode()
            writer.write({
                '__key__': f'{number:09d}', 'json': path_in_it,
                Path(name).suffix[1:].lower(): data})
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial_path, path)


def _verify_shard(path: Path, start: int, names: List[str],
                  digests: Iterator[bytes]) -> None:
    """Read a shard by the library and compare it with its images."""
    import webdataset

    samples = webdataset.tariterators.tarfile_samples([dict(url=str(path))])
    number = start - 1
    for number, (name, digest, sample) in enumerate(
            zip(names, digests, samples), start):
        data = sample.get(Path(name).suffix[1:].lower())
        if (sample['__key__'] != f'{number:09d}' or data is None or digest !=
                hashlib.blake2b(data, digest_size=16).digest()):
            break
    else:
        if number + 1 == start + len(names) and next(samples, None) is None:
            return
    raise SourceError(
        f'{path} does not read back as it was written: the disk or the shard '
        'is damaged, or the images have changed since; delete the shard and '
        'start again')


def _find_places(path: Path, number: int, extensions: Tuple[str, ...]
                 ) -> Tuple[np.ndarray, List[str]]:
    """Find the images in a shard: their places and names."""
    places, names = [], []
    with tarfile.open(path, 'r:') as shard:
        for member in shard:
            if member.isreg() and member.name.lower().endswith(extensions):
                places.append((member.offset_data, number, member.size))
                names.append(member.name)
            vars(shard)['members'] = []  # which would pile up
    return np.array(places, PLACE), names


def _places_of(path: Path) -> Path:
    return path.with_name(f'.{path.name}.places.npy')


def _save(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f'{path.name}.tmp')
    with open(temporary, 'wb') as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _index_shards(source: Path, folder: Path, extensions: Tuple[str, ...]
                  ) -> Iterator[Tuple[int, int]]:
    """Make the index of shards that are there already."""
    try:
        found = open_source(source, extensions=('.tar', ))
    except SourceError:
        raise SourceError(
            f'no images and no shards (.tar) below {source}') from None
    shards = [source / name for name in found.names]
    _begin(folder, dict(shards=[str(p) for p in shards]))
    counts, names = [], []
    for number, path in enumerate(shards):
        try:
            places, inside = _find_places(path, number, extensions)
        except (tarfile.TarError, OSError) as error:
            raise SourceError(f'{path} cannot be read ({error})') from error
        _save(folder / f'.{number:06d}.places.npy', places)
        counts.append(len(inside))
        names.append(FileNames.of(iter([[
            f'{path.relative_to(source)}/{name}' for name in inside]])))
        yield number + 1, len(shards)
    if not sum(counts):
        raise SourceError(f'no images in the shards below {source}')
    root = os.path.relpath(source, folder)
    _finish(folder, root, shards, counts,
            (name for part in names for name in part),
            [folder / f'.{n:06d}.places.npy' for n in range(len(shards))])


def _finish(folder: Path, root: str, shards: List[Path], counts: List[int],
            names: Iterator[str], kept: Optional[List[Path]] = None) -> None:
    """Write the index, and its own file last."""
    kept = [_places_of(path) for path in shards] if kept is None else kept
    with open(folder / NAMES_FILE, 'w', encoding='utf-8',
              errors='surrogateescape', newline='\n') as file:
        for name in names:
            file.write(f'{encode_name(name)}\n')
        file.flush()
        os.fsync(file.fileno())
    _save(folder / PLACES_FILE, np.concatenate([np.load(p) for p in kept]))
    base = folder / root
    index = dict(
        version=INDEX_VERSION, images=sum(counts), root=root,
        shards=[(os.path.relpath(path, base), count, path.stat().st_size)
                for path, count in zip(shards, counts)])
    temporary = folder / f'{INDEX_FILE}.tmp'
    temporary.write_text(json.dumps(index), 'utf-8')
    os.replace(temporary, folder / INDEX_FILE)
    for path in (*kept, folder / _PLAN):
        path.unlink(missing_ok=True)
