"""Images and masks with the same names."""
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config import ArgumentError
from ..datasets.listing import case_variants
from ..datasets.source import SourceError, open_source
from ..dependencies import cpu_count
from ..evaluation.dense import pair_files
from ..files import PathLike
from .data import (LabelledData, Part, collect_parts, complete,
                   describe_narrow, drop_unreadable)

_IMAGES = ('images', 'image', 'imgs', 'img')
_MASKS = ('masks', 'mask', 'labels', 'annotations', 'semantic')
# Value of unlabelled pixels.
IGNORED = 255


def read_masks(data: PathLike,
               val: str | None = None,
               labels_per_class: int | None = None,
               seed: int = 0,
               images: Mapping[str, Any] | None = None,
               smallest: tuple[int, int] = (1024, 256)) -> LabelledData:
    """Find and check images and masks with the same names.

    Masks are images with one channel. ``classes.txt`` in the same folder has
    the name of value i in line i; without it, each value is a class. 255 is
    ignored, unless masks have the values 0 and 255 only.

    Args:
        data (str | PathLike): Folder with ``images`` and ``masks``, each with
            ``train`` and ``val`` or not, or ``train/images``, ...
        val (str, optional): Name of the validation part.
        labels_per_class (int, optional): Number of training images of each
            class, counted by the rarest class of an image.
        seed (int): Seed of both draws. Defaults to 0.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage``.
        smallest (tuple[int, int]): Smallest scale that training resizes images
            to, the longer side first. Too narrow images are skipped.

    Returns:
        LabelledData: The parts; labels are the classes of each mask.

    Raises:
        ArgumentError: If there are no such folders, a mask is missing or has
            other values, or there are fewer than two classes.
    """
    root = Path(data).absolute()
    folders = collect_parts(root, val, partial(_find_folders, root))
    parts, unreadable = drop_unreadable(
        {part: _pair(*pair) for part, pair in folders.items()}, images,
        partial(_check, smallest=smallest))
    parts, classes, label_map = _read_values(root, parts)
    return complete(LabelledData(classes, parts, [], unreadable, 'segment',
                                 label_map), labels_per_class, seed)


def _check(record: Mapping[str, Any], image: np.ndarray,
           smallest: tuple[int, int]) -> str:
    """Check that a mask has the size of its image, which can be resized."""
    height, width = read_mask(record['seg_map_path']).shape
    if (height, width) != image.shape[:2]:
        raise ArgumentError(
            f'{record["seg_map_path"]} has {width} x {height} pixels, but its '
            f'image {image.shape[1]} x {image.shape[0]}')
    return describe_narrow(image, smallest)


def _find_folders(root: Path, words: Sequence[str]) -> list[Path] | None:
    """Find the folders of images and masks of a part."""
    for word in case_variants(words):
        for first in (True, False):
            pair = []
            for kinds in (_IMAGES, _MASKS):
                paths = [root / kind / word if first else root / word / kind
                         for kind in case_variants(kinds)]
                pair += [p for p in paths if p.is_dir()][:1]
            if len(pair) == 2:
                return pair
    if '' in words:
        raise ArgumentError(f'{root} has no folders images and masks, with or '
                            'without train and val in them')
    return None


def _pair(images: Path, masks: Path) -> Part:
    """Pair images and masks by their names without suffix."""
    try:
        found, labels = open_source(images), open_source(masks)
    except SourceError as error:
        raise ArgumentError(str(error)) from error
    records = [dict(img_path=pair.path, seg_map_path=pair.map)
               for pair in pair_files(found, labels)]
    spare = len(labels) - len({r['seg_map_path'] for r in records})
    notes = [f'{spare:,} masks without an image are left out'] * bool(spare)
    return Part(str(images), records, [[]] * len(records), notes=notes)


def read_mask(path: str) -> np.ndarray:
    """Read a mask: uint8, (H, W); palette indices are its values."""
    try:
        with Image.open(path) as image:
            kind, mask = image.format, np.asarray(image)
    except (OSError, SyntaxError) as error:  # as Pillow raises for PNG files
        raise ArgumentError(f'{path} cannot be read: {error}') from error
    if kind == 'JPEG':
        raise ArgumentError(f'{path} is a JPEG file, whose compression changes'
                            ' the values of a mask; use PNG files')
    if mask.ndim != 2 or mask.dtype != np.uint8 and not (
            (mask >= 0) & (mask <= 255) & (mask == np.floor(mask))).all():
        raise ArgumentError(
            f'{path} must have one channel of whole values from 0 to 255, but '
            f'has {mask.shape[2] if mask.ndim == 3 else 1} channel(s) of '
            f'{mask.dtype} from {mask.min()} to {mask.max()}')
    return mask.astype(np.uint8)


def _read_values(root: Path, parts: Mapping[str, Part]) -> Any:
    """Read the values of all masks and the names of classes."""
    records = [r for part in parts.values() for r in part.records]
    with ThreadPoolExecutor(cpu_count()) as pool:
        values = list(pool.map(
            lambda r: np.unique(read_mask(r['seg_map_path'])).tolist(),
            records))
    used = {v for one in values for v in one}
    if used != {0, IGNORED}:
        used -= {IGNORED}
    file = root / 'classes.txt'
    if file.is_file():
        names = _read_names(file)
        unknown = sorted(used - {*names})
        if unknown:
            raise ArgumentError(
                f'masks have the value {unknown[0]}, but {file} has '
                f'{len(names)} names, starting with value 0')
    else:
        names = {v: f'value {v}' for v in sorted(used)}
    if len(names) < 2:
        raise ArgumentError(
            f'the masks below {root} have the values {sorted(used)} beside '
            f'{IGNORED}, which is ignored; a segmenter needs two classes or '
            'more')
    found, start = {}, 0
    for part, old in parts.items():
        stop = start + len(old.records)
        found[part] = old._replace(labels=[
            [names[v] for v in one if v in names]
            for one in values[start:stop]])
        if not any(found[part].labels):
            raise ArgumentError(
                f'the masks of {old.place} have ignored pixels only, of the '
                f'value {IGNORED}')
        start = stop
    return found, list(names.values()), {
        value: number for number, value in enumerate(names)}


def _read_names(file: Path) -> dict[int, str]:
    """Read the names of values from the lines of a file."""
    try:
        lines = file.read_text('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f'{file} is not UTF-8 text: {error}') from error
    names = {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    name, count = Counter(names.values()).most_common(1)[0] if names else (
        '', 0)
    if count > 1 or max(names, default=0) >= IGNORED:
        what = (f'the name {name!r} {count} times' if count > 1 else
                f'{len(lines)} lines, more than {IGNORED}')
        raise ArgumentError(f'{file} has {what}')
    return names
