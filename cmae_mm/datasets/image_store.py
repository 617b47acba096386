"""Images in one LMDB file, for network disks that are slow at small files.

A store is a folder with LMDB's ``data.mdb``, whose keys number the images,
and ``images.txt``, the images' relative paths in that order. ``images.txt`` is
written last: a folder without it is not a whole store. ``types.json`` says
which types of images it has.
"""
import json
import os
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple

from .decode import peek
from .shrinking import ShrinkError, short_side_of, shrink
from .source import (
    NAMES_FILE,
    encode_name,
    kind_of,
    open_source,
    store_key,
)

# How many images there are of each type, for people.
TYPES_NAME = 'types.json'
_MAP_SIZE = 1 << 40  # address space, not disk space
_COMMIT_EVERY = 256


class StoreError(ValueError):
    """A store that cannot be written or is damaged; the message says why."""


def read_types(folder: str) -> Dict[str, int]:
    """Read how many images of each type a store has.

    Returns:
        Dict[str, int]: Numbers of images by '<channels> x <type>'; empty for
        a store of an earlier version.
    """
    path = Path(folder) / TYPES_NAME
    return json.loads(path.read_text('utf-8')) if path.is_file() else {}


def write_store(source: Path,
                folder: Path,
                extensions: Tuple[str, ...],
                short_side: Optional[int] = None) -> Iterator[Tuple[int, int]]:
    """Write all images below a folder into a store, and verify them.

    Interrupted and called again with the same arguments, it goes on where it
    stopped. Files are copied bit by bit unless ``short_side`` is set.

    Args:
        source (Path): Folder of images.
        folder (Path): The store.
        extensions (Tuple[str, ...]): Endings of image files.
        short_side (int, optional): Make the shorter side of larger images
            this long, in pixels. Defaults to None.

    Yields:
        Tuple[int, int]: Images done, of all; each is counted twice, once
        written and once verified.

    Raises:
        StoreError: If the folder holds something else, or what was written
            does not read back.
    """
    import lmdb

    images = open_source(source, extensions=extensions)
    paths = list(images.names)
    encoded = [encode_name(path) for path in paths]
    started = '\n'.join([f'short_side={short_side}', *encoded])
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / 'images.txt.partial'
    if folder.exists() and kind_of(folder) == 'store':
        raise StoreError(f'{folder} is a whole store already; delete it to '
                         'write it anew')
    if plan.exists():
        if plan.read_text('utf-8') != started:
            raise StoreError(
                f'{folder} was begun with other images or another short side;'
                ' delete it to begin anew')
    elif any(folder.iterdir()):
        raise StoreError(f'{folder} is not empty and not a store')
    else:
        plan.write_text(started, 'utf-8')

    total = 2 * len(paths)
    types: Counter = Counter()
    with lmdb.open(str(folder), map_size=_MAP_SIZE) as env:
        done = env.stat()['entries']
        yield done, total
        while done < len(paths):
            batch = paths[done:done + _COMMIT_EVERY]
            with env.begin(write=True) as transaction:
                for number, path in enumerate(batch, done):
                    data = _shrink(images.read(number), short_side, path)
                    transaction.put(store_key(number).encode(), data)
            done += len(batch)
            yield done, total
        for number, path in enumerate(paths):
            with env.begin() as transaction:
                stored = transaction.get(store_key(number).encode())
            _verify(stored, Path(images.path(number)), short_side)
            types[_type_of(stored, path)] += 1
            yield len(paths) + number + 1, total
    (folder / TYPES_NAME).write_text(
        json.dumps(dict(types.most_common())) + '\n', 'utf-8')
    finished = folder / (NAMES_FILE + '.tmp')
    finished.write_text('\n'.join(encoded) + '\n', 'utf-8')
    os.replace(finished, folder / NAMES_FILE)
    plan.unlink()


def _verify(stored: Optional[bytes], path: Path,
            short_side: Optional[int]) -> None:
    if stored == path.read_bytes():
        return
    if stored is None or short_side is None:
        raise StoreError(f'{path} does not read back as it was written; the '
                         'disk or the store is damaged: delete the store')
    side = short_side_of(stored, path.name)
    if side != short_side:
        raise StoreError(f'{path} was stored with a short side of {side} '
                         f'instead of {short_side}')


def _shrink(data: bytes, short_side: Optional[int], path: str) -> bytes:
    try:
        return shrink(data, short_side, path)
    except ShrinkError as error:
        raise StoreError(str(error)) from error


def _type_of(data: Optional[bytes], path: str) -> str:
    try:
        return str(peek(data or b'', path))
    except ValueError:
        return 'unreadable'
