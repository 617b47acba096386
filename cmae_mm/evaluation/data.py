"""Labelled images for evaluation, and random subsets of them."""
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import ArgumentError
from ..datasets.listing import PART_NAMES, MissingSplit, split_line
from ..datasets.names import decode_name, encode_name
from ..datasets.source import (ImageSource, SourceError, kind_of, open_source,
                               select_images)
from ..files import PathLike, write_file
from ..image_size import ImageSize, resize_size, to_pair, to_size


class EvaluationDataError(ArgumentError):
    """Labelled images cannot be used; the message has the reason."""


class LabelledImages(NamedTuple):
    """Images to fit a classifier, and images for its scores."""

    train: ImageSource
    val: ImageSource


def open_labelled(data: Any, val: Any = None) -> LabelledImages:
    """Open the labelled images of a data folder, list, store or shards.

    Without a validation part, the test part is used, which the description of
    the images notes.

    Args:
        data (str | PathLike): Class folders in ``train`` and ``val`` (or
            ``valid``, ``validation``, ``dev``; ``test``), or a CSV file with
            a column ``split``.
        val (str | PathLike, optional): Labelled images for the scores: a part
            of ``data``, or other data. Defaults to None, the validation part.

    Returns:
        LabelledImages: Both sources.

    Raises:
        EvaluationDataError: If there are no labels or no such parts, or the
            classes differ.
    """
    try:
        parts = find_parts(data, val, dict(val=('val', 'test')))
        if 'val' not in parts:
            raise SourceError(f'{os.fspath(data)!r} has no part val (or valid,'
                              ' validation, dev, test)')
    except (FileNotFoundError, SourceError) as error:
        raise EvaluationDataError(
            f'no labelled images to evaluate on: {error}; use class folders '
            'in train and val, or a CSV file with the columns label and '
            'split') from error
    train, scored = parts['train'], parts['val']
    if val is None and scored.split.lower() in PART_NAMES['test']:
        scored.notes.append('using the test part for scores, since there is '
                            'no validation part')
    _number_as(scored, train.classes or [])
    check_same_classes(train.classes, scored.classes)
    if train.kind != 'folder' or train.root == scored.root:
        known = {train.path(i) for i in range(len(train))}
        shared = sum(scored.path(i) in known for i in range(len(scored)))
        if shared:
            scored.notes.append(f'{shared:,} of them are training images')
    return LabelledImages(train, scored)


def find_parts(data: PathLike,
               val: PathLike | None,
               others: Mapping[str, Any],
               several: bool | None = None) -> dict[str, ImageSource]:
    """Open the parts of a labelled data set.

    Args:
        data (str | PathLike): The data set.
        val (str | PathLike, optional): Another validation part or other data.
        others (Mapping[str, str | Sequence[str]]): Names of parts in addition
            to ``train``, see :func:`open_source`.
        several (bool, optional): Whether images have several labels. Defaults
            to None, whether those in the list ``data`` have.

    Returns:
        dict[str, ImageSource]: The existing parts; all images as ``train`` if
        there is none.

    Raises:
        FileNotFoundError: If the data set does not exist.
        SourceError: If images or labels are wrong, or a part is missing.
    """
    train = _open(data, 'train', several)
    found = dict(train=train)
    several = np.asarray(train.labels).ndim == 2
    if val:
        others = dict(others, val=os.fspath(val))
    for part, split in others.items():
        try:
            found[part] = _open(data, split, several, strict=True)
        except MissingSplit:
            pass
        except SourceError as error:  # often without labels
            if part != 'test':
                raise
            train.notes.append(f'the test part is skipped: {error}')
    if not train.split and ('test' in found or 'val' in found and not val):
        raise SourceError(f'{os.fspath(data)} has a validation or test part, '
                          'but no part train')
    if val and 'val' not in found:
        if not Path(val).expanduser().exists():
            raise SourceError(
                f'{os.fspath(data)} has no part {os.fspath(val)!r}, and there '
                'is no such folder or list')
        found['val'] = _open(val, None, several)
    if val and 'test' in found and place_of(found['test']) == place_of(
            found['val']):
        del found['test']
    return found


def place_of(source: ImageSource) -> str:
    """Return the folder, list or split of a source."""
    place, split = source.place, source.split
    return place if place.endswith(split) else f'{place}, split {split}'


def _open(data: PathLike, split: Any, several: bool | None,
          strict: bool = False) -> ImageSource:
    """Open labelled images, with several labels each if a list has them."""
    is_list = kind_of(data) == 'list'
    if several and not is_list:
        raise SourceError(
            f'{os.fspath(data)} has one label per image; multi-label data '
            'must be a list or a CSV file, with labels separated by | or ;, '
            'or a column of 0 and 1 for each class')
    read = partial(open_source, data, split=split, strict=strict)
    error = None
    try:
        source = read(labels='several' if several else True)
    except SourceError as caught:  # columns of 0 and 1, empty labels
        error = caught
    if several is None and is_list and (error or any(
            '|' in name for name in source.classes or ())):
        with suppress(SourceError):
            other = read(labels='several')
            if not error or np.asarray(other.labels).sum(1).max() > 1:
                source, error = other, None
    if error:
        raise error
    if is_list:
        _drop_repeated(source)
    return source


def _drop_repeated(source: ImageSource) -> None:
    """Drop repeated rows of a list."""
    labels: Any = source.labels
    first: dict[str, int] = {}
    for index, name in enumerate(source.names):
        other = first.setdefault(os.path.normpath(name), index)
        if other != index and np.any(labels[other] != labels[index]):
            one, two = ('|'.join(source.label_names(i))
                        for i in (other, index))
            raise SourceError(f'{encode_name(name)} is listed with two '
                              f'labels, {one!r} and {two!r}')
    kept = sorted(first.values())
    if len(kept) < len(source):
        source.notes.append(
            f'{len(source) - len(kept):,} repeated rows are skipped')
        select_images(source, kept)


def _number_as(source: ImageSource, classes: list[str]) -> None:
    """Number several labels by the classes of another part."""
    labels = np.asarray(source.labels)
    own = source.classes or []
    if labels.ndim == 2 and {*own} <= {*classes}:
        source.labels = np.zeros((len(source), len(classes)), bool)
        source.labels[:, [classes.index(name) for name in own]] = labels
        source.classes = list(classes)


def eval_pipeline(img_size: ImageSize,
                  short_side: int | None = None,
                  images: Mapping[str, Any] | None = None) -> list:
    """Return the transforms of evaluation: resize and centre crop.

    Args:
        img_size (int | Sequence[int]): Side of the centre crop in pixels, or
            (height, width).
        short_side (int, optional): See
            :func:`~cmae_mm.image_size.resize_size`. Defaults to 256/224 of the
            crop.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage`` for
            decoding. Defaults to None, 8-bit colours.

    Returns:
        list: Configs of transforms.
    """
    covered = resize_size(img_size, short_side)
    return [
        dict(type='LoadImage', short_side=max(covered), **(images or {})),
        dict(type='ResizeImage', scale=to_size(covered)),
        dict(type='CenterCrop', crop_size=to_size(to_pair(img_size)[::-1])),
        dict(type='PackInputs'),
    ]


def configured_images(cfg: Any) -> LabelledImages:
    """Open the labelled images of a pre-training config.

    These are its ``evaluation=dict(train=..., val=..., short_side=...)``,
    configs of ``LabelledDataset``; otherwise the parts of the ``data_root``
    of the training images, see :func:`open_labelled`.

    Args:
        cfg (Config): A pre-training config.

    Returns:
        LabelledImages: Both sources.

    Raises:
        EvaluationDataError: If the setting has other keys, or there are no
            labelled images.
    """
    given = dict(cfg.get('evaluation') or {})
    unknown = set(given) - {'train', 'val', 'short_side'}
    if unknown:
        raise EvaluationDataError(
            'evaluation takes train, val and short_side, but got '
            f'{sorted(unknown)}')
    if 'train' not in given and 'val' not in given:
        return open_labelled(cfg.train_dataloader.dataset.data_root)
    from mmpretrain.registry import DATASETS
    sources: list[ImageSource] = []
    for part in ('train', 'val'):
        try:
            dataset = DATASETS.build(dict(given[part], pipeline=[]))
        except (KeyError, FileNotFoundError, ValueError) as error:
            raise EvaluationDataError(
                f'no labelled images to evaluate on: evaluation.{part}: '
                f'{error}') from error
        source = getattr(dataset, 'source', None)
        if source is None or source.labels is None:
            raise EvaluationDataError(
                f'evaluation.{part} must be a LabelledDataset, but is a '
                f'{type(dataset).__name__}')
        sources.append(source)
    check_same_classes(sources[0].classes, sources[1].classes)
    return LabelledImages(*sources)


def check_same_classes(train: Sequence[str] | None,
                       val: Sequence[str] | None,
                       name: str = 'the validation data') -> None:
    """Check that both parts have the same classes.

    Each part numbers its own class folders, so a missing class would shift the
    numbers of others.

    Args:
        train (Sequence[str], optional): Class names of the training images,
            None if unknown.
        val (Sequence[str], optional): Those of the other images.
        name (str): Name of the other images.

    Raises:
        EvaluationDataError: If the classes differ.
    """
    if train is None or val is None or list(train) == list(val):
        return
    parts = []
    for has, lacks, a, b in ((name, 'the training data', val, train),
                             ('the training data', name, train, val)):
        only = sorted(set(a) - set(b))
        if only:
            more = ', ...' if len(only) > 10 else ''
            parts.append(f'{", ".join(map(repr, only[:10]))}{more} in {has} '
                         f'and not in {lacks}')
    raise EvaluationDataError(
        'the classes differ: '
        f'{"; ".join(parts) or "their order is not the same"}. Both need the '
        'same ones (folders may be empty), since labels are numbered by them')


# Split files: subsets of the training images


def draw_fraction(labels: Sequence[int], percent: float,
                  seed: int) -> list[int]:
    """Draw a stratified subset of a data set.

    Args:
        labels (Sequence[int]): Class of each image.
        percent (float): Percentage of each class to keep, in (0, 100], at
            least one image.
        seed (int): Seed of the draw: the same one draws the same images.

    Returns:
        list[int]: Sorted indices of the drawn images.
    """
    return _draw(labels, seed,
                 lambda size: max(1, round(size * percent / 100)))


def draw_shots(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Draw the same number of images of each class.

    Args:
        labels (Sequence[int]): Class of each image.
        shots (int): Number of images of each class, 1 or more.
        seed (int): Seed of the draw: the same one draws the same images.

    Returns:
        list[int]: Sorted indices of the drawn images.

    Raises:
        ValueError: If a class has fewer images.
    """
    smallest = np.unique(labels, return_counts=True)[1].min()
    if smallest < shots:
        raise ValueError(
            f'{shots} images per class were requested, but the smallest class '
            f'has {smallest}')
    return _draw(labels, seed, lambda size: shots)


def _draw(labels: Sequence[int], seed: int,
          how_many: Callable[[int], int]) -> list[int]:
    classes = np.asarray(labels)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        size = how_many(len(members))
        drawn += rng.choice(members, size, replace=False).tolist()
    return sorted(drawn)


def write_split(source: ImageSource, percent: float, seed: int,
                path: str) -> int:
    """Draw a stratified subset and write it to a list file.

    The file is a list for ``LabelledDataset``: lines of ``<path below the
    folder> <label>``.

    Args:
        source (ImageSource): All labelled images.
        percent (float): Percentage of each class, in (0, 100], at least one
            image.
        seed (int): Seed of the draw: the same one draws the same images.
        path (str): The file to write.

    Returns:
        int: Number of images in the split.
    """
    names, labels = source.names, source.labels
    assert labels is not None
    drawn = draw_fraction(labels.tolist(), percent, seed)
    write_file(path, ''.join(
        f'{encode_name(names[i])} {labels[i]}\n' for i in drawn))
    return len(drawn)


def read_split(path: str, img_paths: Sequence[str],
               strict: bool = True) -> list[int]:
    """Find the images of a split file.

    Args:
        path (str): The split file.
        img_paths (Sequence[str]): Paths of all images.
        strict (bool): Whether unknown images are an error; otherwise they are
            left out. Defaults to True.

    Returns:
        list[int]: Indices of the images in the file.

    Raises:
        EvaluationDataError: If the file is missing or empty, or contains
            unknown images.
    """
    file = Path(path)
    if not file.is_file():
        raise EvaluationDataError(
            f'there is no split file {path}; `cmae splits` writes them')
    lines = file.read_text('utf-8', 'surrogateescape').split('\n')
    names = [decode_name(split_line(line)[0])
             for line in map(str.strip, lines) if line]
    if not names:
        raise EvaluationDataError(f'the split file {path} is empty')
    # Paths may be in another folder: compare the last parts.
    depth = names[0].count('/') + 1
    index = {
        '/'.join(p.replace(os.sep, '/').split('/')[-depth:]): i
        for i, p in enumerate(img_paths)
    }
    missing = [n for n in names if n not in index]
    if missing and strict:
        raise EvaluationDataError(
            f'{len(missing)} images of {path} are not in the training data, '
            f'the first: {missing[0]}')
    return [index[n] for n in names if n in index]
