"""Images in one LMDB file, for network disks that are slow at small files.

A store is a folder with LMDB's ``data.mdb``, whose keys number the images,
and ``images.txt``, the images' relative paths in that order. ``images.txt`` is
written last: a folder without it is not a whole store.
"""
import os
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import cv2
import numpy as np
import simplejpeg
from mmengine.logging import print_log

from .decoding import UndecodableImage, decode_image

LIST_NAME = 'images.txt'
_MAP_SIZE = 1 << 40  # address space, not disk space
_COMMIT_EVERY = 256


class StoreError(ValueError):
    """A store that cannot be written or is damaged; the message says why."""


def is_store(folder: str) -> bool:
    """Say whether a folder is a whole store."""
    return (Path(folder) / LIST_NAME).is_file() and (
        Path(folder) / 'data.mdb').is_file()


def read_list(folder: str) -> List[str]:
    """Read the relative paths of a store's images, in the keys' order."""
    return (Path(folder) / LIST_NAME).read_text('utf-8').splitlines()


def key_of(number: int) -> str:
    """Give the key of the n-th image."""
    return f'{number:09d}'


def find_images(source: Path, extensions: Tuple[str, ...]) -> List[str]:
    """List the images below a folder, as relative paths, sorted.

    Raises:
        StoreError: If there are none, or a name holds a line break.
    """
    paths = sorted(
        str(Path(folder, name).relative_to(source))
        for folder, _, names in os.walk(source) for name in names
        if name.lower().endswith(extensions))
    if not paths:
        raise StoreError(f'no images below {source}')
    broken = [p for p in paths if '\n' in p or '\r' in p]
    if broken:
        raise StoreError(f'{broken[0]!r} has a line break in its name')
    return paths


def shrink(data: bytes, short_side: Optional[int], name: str) -> bytes:
    """Re-encode an image whose shorter side is longer than wanted.

    What is small enough, or cannot be decoded, is kept as it is.

    Args:
        data (bytes): The file.
        short_side (int, optional): Length in pixels that the shorter side of
            larger images is reduced to; None keeps all as they are.
        name (str): Name of the image, for the warning.

    Returns:
        bytes: A JPEG of quality 92, or the data themselves.
    """
    if short_side is None:
        return data
    try:
        image = decode_image(data)
    except UndecodableImage as error:
        print_log(f'{name} cannot be decoded ({error}) and is stored as it '
                  'is; training will skip it.', logger='current', level=30)
        return data
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return data
    image = cv2.resize(
        np.ascontiguousarray(image), (max(round(width * scale), short_side),
                max(round(height * scale), short_side)),
        interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(image, quality=92, colorspace='BGR')


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

    paths = find_images(source, extensions)
    started = '\n'.join([f'short_side={short_side}', *paths])
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / 'images.txt.partial'
    if is_store(str(folder)):
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
    with lmdb.open(str(folder), map_size=_MAP_SIZE) as env:
        done = env.stat()['entries']
        yield done, total
        while done < len(paths):
            batch = paths[done:done + _COMMIT_EVERY]
            with env.begin(write=True) as transaction:
                for number, path in enumerate(batch, done):
                    data = shrink((source / path).read_bytes(), short_side,
                                  path)
                    transaction.put(key_of(number).encode(), data)
            done += len(batch)
            yield done, total
        for number, path in enumerate(paths):
            with env.begin() as transaction:
                stored = transaction.get(key_of(number).encode())
            _verify(stored, source / path, short_side)
            yield len(paths) + number + 1, total
    finished = folder / (LIST_NAME + '.tmp')
    finished.write_text('\n'.join(paths) + '\n', 'utf-8')
    os.replace(finished, folder / LIST_NAME)
    plan.unlink()


def _verify(stored: Optional[bytes], path: Path,
            short_side: Optional[int]) -> None:
    if stored == path.read_bytes():
        return
    if stored is None or short_side is None:
        raise StoreError(f'{path} does not read back as it was written; the '
                         'disk or the store is damaged: delete the store')
    height, width = decode_image(stored).shape[:2]
    if min(height, width) != short_side:
        raise StoreError(f'{path} was stored with a short side of '
                         f'{min(height, width)} instead of {short_side}')
