"""Packing of images into an LMDB store or webdataset shards.

Both contain the files of a data set in order, and an index. The index is
written last, so a folder without it is incomplete.
"""
import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import Any, NamedTuple

import lmdb
import numpy as np
import tifffile
from PIL import Image

from .. import files
from ..dependencies import MissingLibrary
from ..progress import Progress
from . import decode
from . import source as sources
from .listing import (IMG_EXTENSIONS, FolderListing, SkippedFiles, is_hidden,
                      parse_labels)
from .names import FileNames, encode_name
from .source import map_numbers

# Source and settings of an unfinished folder.
PLAN_FILE = 'packing.json'
# Address space reserved by LMDB in bytes, the largest size of a store.
_MAP_SIZE = 1 << 42
# Number of images in a transaction of LMDB.
_PART = 256
# Pillow's modes by type, number of channels, and alpha.
_MODES = {('uint8', 1, False): 'L', ('uint8', 2, True): 'LA',
          ('uint8', 3, False): 'RGB', ('uint8', 4, True): 'RGBA'}
# Unchanged files.
_WHOLE = decode.ImageSettings(channels=None, dtype=None)
_ENDINGS = {'re-encoded as JPEG': '.jpg', 're-encoded as PNG': '.png',
            're-encoded as TIFF': '.tif'}
# Suffix in shards for images with an unknown suffix.
_OTHER = '.image'


class PackError(ValueError):
    """Images that cannot be packed, or an output that cannot be used."""


class Packed(NamedTuple):
    """An image and its encoded copy.

    Args:
        name (str): Its name.
        data (bytes): The file.
        how (str): See :func:`shrink`; 'copied' without ``short_side``.
        reason (str): Reason why it was not resized.
    """

    name: str
    data: bytes
    how: str = 'copied'
    reason: str = ''


def pack_images(data: Any,
                out: Any,
                kind: str = 'store',
                *,
                short_side: int | None = None,
                images_per_shard: int = 2000,
                num_workers: int = 0,
                max_pixels: int | None = None) -> dict[str, Any]:
    """Pack the images of a data set, in its order.

    After an interruption, a call with the same arguments continues. Files are
    copied unchanged unless ``short_side`` is set. For a folder of ``.tar``
    files without images, an index of these shards is written.

    Args:
        data (str | PathLike): Folder of images, list file, store or shards.
        out (str | PathLike): Folder to write, outside of ``data``.
        kind (str): 'store' or 'shards'. Defaults to 'store'.
        short_side (int, optional): Resize larger images to this shorter side
            in pixels, see :func:`shrink`. Defaults to None.
        images_per_shard (int): Number of images in a shard. Defaults to 2000.
        num_workers (int): Number of worker processes that read and resize
            images. Defaults to 0.
        max_pixels (int, optional): Largest number of pixels to decode at once
            for resizing. Defaults to 25 million.

    Returns:
        dict[str, Any]: ``images``, their number; ``copies``, numbers by
        :attr:`Packed.how`; ``reasons``, the first image that was not resized
        and the reason; ``source``, a description of the images.

    Raises:
        ValueError: If the images cannot be packed. Written files are removed,
            unless the message explains how to continue.
    """
    out = Path(os.path.abspath(out))
    try:
        source = sources.open_source(data, labels='all')
    except sources.SourceError:
        root = os.path.abspath(data)
        groups = FolderListing(root, ('.tar', )).groups() if (
            kind == 'shards' and os.path.isdir(root)) else ()
        shards = [name for group in groups for name in group]
        if not shards:
            raise
        return _index_shards(root, shards, out)
    if source.kind != 'list':
        _check_outside(out, source.root)
    _check_readable(source)
    total = len(source)
    read = partial(_read, source, short_side, max_pixels=max_pixels)
    writer: Any = _Store(out, source, _PART) if kind == 'store' else (
        _Shards(out, source, images_per_shard))
    plan = dict(kind=kind, source=_digest(source), short_side=short_side,
                size=writer.size)
    if max_pixels is not None:
        plan['max_pixels'] = max_pixels
    copies: Counter = Counter()
    reasons: dict[str, str] = {}
    with closing(writer), _output(out, plan, writer):
        if writer.count():
            copies['written before'] = writer.count()
        missing = [part for part in writer.parts if not writer.has(part)]
        numbers = [np.arange(part.start, part.stop) for part in missing]
        images = _counted(map_numbers(
            read, np.concatenate([np.arange(0), *numbers]), num_workers),
            copies, reasons)
        with Progress(total, 'write', initial=writer.count()) as progress:
            for part in missing:
                writer.write(part, islice(images, len(part)))
                progress.update(len(part))
        names = source.names
        index: dict[str, Any] = dict(
            images=total, source=source.describe(), classes=source.classes,
            empty=list(source.empty),
            sorted=all(names[i - 1] <= names[i] for i in range(1, total)))
        _write_labels(out, source.labels)
        writer.finish(index)
    return dict(index, copies=dict(copies.most_common()), reasons=reasons)


def _check_readable(source: sources.ImageSource) -> None:
    """Check that one of the images can be decoded."""
    reason = ''
    for number, name in enumerate(source.names):
        try:
            decode.read_image(source.read(number), name, _WHOLE)
            return
        except (decode.UnfitImage, decode.TooLargeImage, MissingLibrary):
            return
        except (OSError, ValueError) as error:
            reason = reason or f'{encode_name(name)}: {error}'
    raise PackError(f'none of the {len(source):,} images of {source.root} can '
                    f'be read ({" ".join(reason.split())})')


def _check_outside(out: Path, root: str) -> None:
    root = os.path.realpath(root)
    if os.path.commonpath([root, os.path.realpath(out)]) == root:
        raise PackError(f'{out} is inside the folder of the images, {root}; '
                        'choose a folder outside')


@contextmanager
def _output(out: Path, plan: dict[str, Any],
            writer: Any = None) -> Iterator[None]:
    """Create or continue a folder; clear it if no part was written."""
    files.check_output(out, is_folder=True)
    if out.is_dir() and sources.kind_of(out) != 'folder':
        raise PackError(f'{out} is already complete; delete it to write it '
                        'again')
    path, text = out / PLAN_FILE, json.dumps(plan)
    with files.output_lock(out, is_folder=True):
        is_new = not path.exists()
        if not is_new and path.read_text('utf-8') != text:
            raise PackError(f'{out} contains an incomplete copy of other '
                            'images or settings; delete it to start again')
        if is_new and set(os.listdir(out)) - {'.lock'}:
            raise PackError(f'{out} is not empty; choose another folder')
        try:
            files.remove_temporaries(out)
            files.write_file(path, text)
            yield
        except BaseException as error:
            kept = not is_new
            with suppress(lmdb.Error):
                kept = kept or writer is not None and writer.count() > 0
            for name in () if kept else set(os.listdir(out)) - {'.lock'}:
                os.unlink(out / name)
            end = (f'written files are in {out}; the same command continues'
                   if kept else 'nothing was written')
            if isinstance(error, OSError) and error.filename:
                raise PackError(
                    f'{error.filename} {error.strerror}; {end}') from error
            if isinstance(error, (RuntimeError, ValueError, lmdb.Error)):
                raise PackError(f'{error}; {end}') from error
            raise
        path.unlink()


def _digest(source: sources.ImageSource) -> str:
    """Hash the names and labels of the images."""
    digest = hashlib.blake2b(os.fsencode(source.root), digest_size=16)
    for name in source.names:
        digest.update(b'\0' + os.fsencode(name))
    if source.labels is not None:
        digest.update(source.labels.tobytes())
    return digest.hexdigest()


def _read(source: sources.ImageSource, short_side: int | None,
          number: int, max_pixels: int | None = None) -> Packed:
    """Read an image, and resize it if requested."""
    name = source.names[number]
    try:
        data = source.read(number)
    except OSError as error:
        raise PackError(f'{encode_name(source.path(number))} cannot be read '
                        f'({error.strerror or error})') from None
    if short_side is None:
        return Packed(name, data)
    return shrink(data, short_side, name, max_pixels)


def shrink(data: bytes, short_side: int, name: str,
           max_pixels: int | None = None) -> Packed:
    """Re-encode an image if its shorter side is too long.

    JPEG files are saved as JPEG with quality 92, all others without loss as
    PNG or TIFF with the same type, channels and alpha. The orientation is
    applied. Images that would lose information are copied.

    Args:
        data (bytes): The file.
        short_side (int): Length of the shorter side in pixels.
        name (str): Name of the image.
        max_pixels (int, optional): See :func:`pack_images`.

    Returns:
        Packed: ``how`` is 're-encoded as JPEG', PNG or TIFF; 'copied' if it is
        small enough; 'not reduced' or 'undecodable' with a reason.

    Raises:
        MissingLibrary: If an optional library is needed; names the file.
    """
    try:
        raw = decode.read_image(
            data, name, decode.make_settings(
                channels=None, dtype=None, max_pixels=max_pixels),
            short_side + 1)
    except decode.TooLargeImage as error:
        return Packed(name, data, 'not reduced', str(error))
    except decode.UndecodableImage as error:
        return Packed(name, data, 'undecodable', str(error))
    except decode.UnfitImage as error:
        return Packed(name, data, 'not reduced',
                      str(error).replace(name, 'it', 1))
    sides = raw.pixels.shape[:2]
    if min(sides) <= short_side:
        return Packed(name, data)
    dtype = raw.pixels.dtype.name
    for lost, reason in (
            (decode.is_dicom(data, name), 'DICOM files have units'),
            (dtype not in decode.IMAGE_DTYPES, f'its type is {dtype}'),
            (decode.find_missing(raw) is not None, 'it has missing pixels'),
            (_is_cmyk(data), 'it is in CMYK')):
        if lost:
            return Packed(name, data, 'not reduced', reason)
    height, width = (max(round(side * short_side / min(sides)), short_side)
                     for side in sides)
    pixels, factor = raw.pixels, 1
    for widened in (1, 257, 256) if dtype == 'uint16' else ():
        # 8 bits stored as 16 are read as 8 bits; keep them.
        if pixels.max() // widened <= 255 and not (pixels % widened).any():
            pixels, factor = (pixels // widened).astype('uint8'), widened
            break
    pixels = np.ascontiguousarray(
        decode.resize_image(pixels, (height, width)).astype(dtype) * factor,
        dtype)
    file = io.BytesIO()
    mode = _MODES.get((dtype, pixels.shape[2], raw.alpha))
    how = 'TIFF' if mode is None else 'JPEG' if decode.is_jpeg(data) else 'PNG'
    if mode is None:
        _write_tiff(file, pixels, raw.alpha)
    else:
        Image.frombytes(mode, (width, height), pixels.tobytes()).save(
            file, how, quality=92, subsampling=0)
    return Packed(name, file.getvalue(), f're-encoded as {how}')


def _is_cmyk(data: bytes) -> bool:
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:
        return image.mode == 'CMYK'
    return False


def _write_tiff(file: io.BytesIO, pixels: np.ndarray, alpha: bool) -> None:
    channels = pixels.shape[2]
    is_rgb = alpha and channels >= 4
    extra = ['unspecified'] * (channels - (3 if is_rgb else 1))
    if alpha:
        extra[-1] = 'unassalpha'
    tifffile.imwrite(
        file, pixels if channels > 1 else pixels[..., 0],
        photometric='rgb' if is_rgb else 'minisblack',
        planarconfig='contig' if channels > 1 else None,
        extrasamples=extra or None, metadata=None, compression='zlib')


def _counted(images: Iterable[Packed], copies: Counter,
             reasons: dict[str, str]) -> Iterator[Packed]:
    """Count the copies by kind, and keep the first reason of each."""
    for image in images:
        copies[image.how] += 1
        if image.reason:
            reasons.setdefault(image.how, f'{encode_name(image.name)}: '
                               f'{" ".join(image.reason.split())}')
        yield image


class _Writer:
    """Writes images in parts."""

    def __init__(self, out: Path, source: sources.ImageSource,
                 size: int) -> None:
        self.out, self.source, self.size = out, source, size
        total = len(source)
        self.parts = [range(start, min(start + size, total))
                      for start in range(0, total, size)]

    def count(self: Any) -> int:
        """Count the images that are on disk."""
        return sum(len(part) for part in self.parts if self.has(part))

    def close(self) -> None:
        """Close open files."""


class _Store(_Writer):
    """Writes a store: each part is a transaction of LMDB."""

    env: Any = None

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def path(self, part: range) -> Path:
        return self.out / sources.STORE_FILE

    def has(self, part: range) -> bool:
        if self.env is None:
            self.env = lmdb.open(str(self.out), map_size=_MAP_SIZE, lock=False)
        return part.stop <= self.env.stat()['entries']

    def write(self, part: range, images: Iterable[Packed]) -> None:
        path, size = self.path(part), 0
        with files.writing(path):
            try:
                with self.env.begin(write=True) as transaction:
                    for number, image in enumerate(images, part.start):
                        key = sources.store_key(number).encode()
                        transaction.put(key, image.data)
                        size += len(image.data)
            except lmdb.Error as error:
                # LMDB raises the same error for a broken and for a full disk.
                if shutil.disk_usage(self.out).free < size:
                    raise OSError(errno.ENOSPC, '') from error
                raise PackError(
                    f'{path} cannot be written: {error}') from error

    def finish(self, index: dict[str, Any]) -> None:
        self.close()
        files.write_file(self.out / sources.STORE_INDEX_FILE,
                         json.dumps(index))
        # Names are written last: they mark a complete store.
        _write_names(self.out, self.source.names)


class _Shards(_Writer):
    """Writes shards: each part is a tar file in webdataset's format."""

    def path(self, part: range) -> Path:
        return self.out / f'shard-{part.start // self.size:06d}.tar'

    def has(self, part: range) -> bool:
        return self.path(part).exists()

    def write(self, part: range, images: Iterable[Packed]) -> None:
        labels = self.source.labels
        with files.atomic_file(self.path(part)) as file, tarfile.open(
                fileobj=file, mode='w') as shard:
            for number, image in enumerate(images, part.start):
                ending = _ENDINGS.get(
                    image.how, PurePosixPath(image.name).suffix.lower())
                path = dict(path=encode_name(image.name))
                fields = {'.json': json.dumps(path).encode()}
                if labels is not None:
                    fields['.cls'] = b'%d' % labels[number]
                fields[ending if ending in IMG_EXTENSIONS else _OTHER] = (
                    image.data)
                for ending, content in fields.items():
                    member = TarInfo(
                        sources.store_key(number) + ending)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))

    def finish(self, index: dict[str, Any]) -> None:
        _write_shard_index(
            self.out, self.out, [self.path(part).name for part in self.parts],
            index, self.source.names)


def _find_images(path: Path, skipped: SkippedFiles
                 ) -> Iterator[tuple[TarInfo, str]]:
    """Find the images in a shard, each with the text of its label or ''.

    Links to files before them in the shard are followed.
    """
    places: dict[str, tuple[int, int]] = {}

    def is_read(member: TarInfo) -> bool:
        kind, target = '', member.linkname
        if member.issym():
            target = os.path.join(os.path.dirname(member.name), target)
        if member.issym() or member.islnk():
            place = places.get(os.path.normpath(target))
            kind = '' if place else 'link'
            if place:
                member.offset_data, member.size = place
                member.type = tarfile.REGTYPE
        if any(map(is_hidden, PurePosixPath(member.name).parts)):
            kind = 'hidden or system file'
        if kind:
            skipped.add(kind, f'{path.name}/{member.name}')
        elif member.isreg():
            places[os.path.normpath(member.name)] = (
                member.offset_data, member.size)
        return member.isreg() and not kind

    try:
        with tarfile.open(path, 'r:') as shard:
            for _, found in groupby(filter(is_read, shard), _sample_key):
                members, label = list(found), ''
                for member in members:
                    if member.name.lower().endswith('.cls'):
                        text: Any = shard.extractfile(member)
                        label = text.read(1000).decode().strip()
                for member in members:
                    if member.name.lower().endswith((*IMG_EXTENSIONS, _OTHER)):
                        yield member, label
                vars(shard)['members'] = []  # members would accumulate
            # tarfile ends without an error at a damaged header.
            file: Any = shard.fileobj
            file.seek(shard.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if end.strip(b'\0') or 0 < len(end) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError(
                    f'it is cut off or damaged after {shard.offset:,} bytes')
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise PackError(f'{path} cannot be read ({error})') from error


def _sample_key(member: TarInfo) -> str:
    """Return the name without suffixes, shared by all files of a sample."""
    folder, slash, name = member.name.rpartition('/')
    return folder + slash + name.partition('.')[0]


def _index_shards(root: str, shards: list[str], out: Path) -> dict[str, Any]:
    """Write an index of existing shards."""
    _check_outside(out, root)
    index: dict[str, Any] = dict(source=f'{len(shards):,} shards in {root}')
    with _output(out, {}):
        _write_shard_index(out, root, shards, index)
    return index


def _write_shard_index(out: Path, root: Any, shards: list[str],
                       index: dict[str, Any], names: Any = None) -> None:
    """Write the files of an index, by default with the members' names."""
    places: list[np.ndarray] = []
    labels: list[str] = []
    skipped, samples = SkippedFiles(), 0

    def scan() -> Iterator[list[str]]:
        nonlocal samples
        for number, shard in enumerate(shards):
            found = list(_find_images(Path(root, shard), skipped))
            samples += len({_sample_key(m) for m, _ in found})
            places.append(np.array([(m.offset_data, number, m.size)
                                    for m, _ in found], sources.PLACE))
            labels.extend(label for _, label in found)
            yield [f'{shard}/{member.name}' for member, _ in found]

    found = FileNames.of(scan())
    if not len(found):
        raise PackError(f'there are no images in the shards below {root}')
    index.update(
        version=sources.INDEX_VERSION, images=len(found),
        root=os.path.relpath(root, out),
        shards=[(shard, len(part), os.path.getsize(os.path.join(root, shard)))
                for shard, part in zip(shards, places)])
    if names is None:
        index['unlabelled'] = labels.count('')
        notes = [f'{labels.count(""):,} of {len(labels):,} images have no '
                 'label (.cls)']
        if samples < len(found):
            notes.append(f'they are of {samples:,} samples, some with several '
                         'images')
        try:
            if all(labels):
                numbers, index['classes'] = parse_labels(
                    labels, found.__getitem__)
                _write_labels(out, numbers)
        except sources.SourceError as error:
            index['unlabelled'] = len(labels)
            notes.append(f'labels are not read, since {error}')
        index['source'] = '; '.join(filter(None, [
            index['source'], *notes, str(skipped)]))
    with files.atomic_file(out / sources.PLACES_FILE) as file:
        np.save(file, np.concatenate(places))
    _write_names(out, found if names is None else names)
    # The index is written last: it marks complete shards.
    files.write_file(out / sources.INDEX_FILE, json.dumps(index))


def _write_labels(out: Path, labels: np.ndarray | None) -> None:
    if labels is not None:
        with files.atomic_file(out / sources.LABELS_FILE) as file:
            np.save(file, labels)


def _write_names(out: Path, names: Iterable[str]) -> None:
    with files.atomic_file(out / sources.NAMES_FILE) as file:
        for name in names:
            file.write(f'{encode_name(name)}\n'.encode())
