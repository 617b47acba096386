"""Labelled images for evaluation, and random subsets of them."""
import os
from pathlib import Path
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from ..datasets.listing import PART_NAMES, split_line
from ..datasets.names import decode_name, encode_name
from ..datasets.source import (
    ImageSource,
    SourceError,
    kind_of,
    open_source,
)
from ..files import write_file
from ..image_size import ImageSize, covered_by, to_pair, to_size


class EvaluationDataError(ValueError):
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
        train = _open(data, 'train')
        several = np.asarray(train.labels).ndim == 2
        if val is None:
            _check_part(train, data, 'train')
            scored = _open_scored(data, several)
        else:
            scored = _open_named(data, os.fspath(val), several)
    except (FileNotFoundError, SourceError) as error:
        raise EvaluationDataError(
            f'no labelled images to evaluate on: {error}; use class folders '
            'in train and val, or a CSV file with the columns label and '
            'split') from error
    known = train.classes or []
    if several and {*(scored.classes or ())} <= {*known}:
        _number_as(scored, known)
    check_same_classes(train.classes, scored.classes)
    _note_shared(train, scored)
    return LabelledImages(train, scored)


def _open_named(data: Any, val: str, several: bool) -> ImageSource:
    """Open a part by its name, or other labelled images."""
    try:
        scored = _open(data, [val], several)
        if scored.split:
            return scored
    except SourceError:  # a list without this part
        pass
    return _open(val, None, several)


def _note_shared(train: ImageSource, scored: ImageSource) -> None:
    """Note the number of scored images that are training images."""
    if train.kind == scored.kind == 'folder' and train.root != scored.root:
        return
    known = {train.path(i) for i in range(len(train))}
    shared = sum(scored.path(i) in known for i in range(len(scored)))
    if shared:
        scored.notes.append(f'{shared:,} of them are training images')


def _open(data: Any, split: Any, several: bool = False) -> ImageSource:
    """Open labelled images, with several labels each if a list has them."""
    error = None
    if not several:
        try:
            source = open_source(data, split=split, labels=True)
            if not any('|' in name for name in source.classes or ()):
                return source
        except SourceError as caught:  # columns of 0 and 1, empty labels
            error = caught
    if error is not None and kind_of(data) != 'list':
        raise error
    try:
        source = open_source(data, split=split, labels='several')
    except SourceError:
        if error is not None:
            raise error from None
        raise
    if error is not None and np.asarray(source.labels).sum(1).max() < 2:
        raise error
    return source


def _number_as(source: ImageSource, classes: List[str]) -> None:
    """Number several labels by the classes of another part."""
    labels = np.zeros((len(source), len(classes)), bool)
    places = [classes.index(name) for name in source.classes or ()]
    labels[:, places] = source.labels
    source.labels, source.classes = labels, list(classes)


def _open_scored(data: Any, several: bool) -> ImageSource:
    """Open the validation part, or the test part."""
    scored = _open(data, ('val', 'test'), several)
    _check_part(scored, data, 'val (or valid, validation, dev, test)')
    if scored.split.lower() in PART_NAMES['test']:
        scored.notes.append('using the test part for scores, since there is '
                            'no validation part')
    return scored


def _check_part(source: ImageSource, data: Any, part: str) -> None:
    if not source.split:
        raise SourceError(f'{os.fspath(data)!r} has no part {part}')


def eval_pipeline(img_size: ImageSize,
                  short_side: Optional[int] = None,
                  images: Optional[Mapping[str, Any]] = None) -> list:
    """Return the transforms of evaluation: resize and centre crop.

    Args:
        img_size (int | Sequence[int]): Side of the centre crop in pixels, or
            (height, width).
        short_side (int, optional): See
            :func:`~cmae_mm.image_size.covered_by`. Defaults to 256/224 of the
            crop.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage`` for
            decoding. Defaults to None, 8-bit colours.

    Returns:
        list: Configs of transforms.
    """
    covered = covered_by(img_size, short_side)
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
    sources: List[ImageSource] = []
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


def check_same_classes(train: Optional[Sequence[str]],
                       val: Optional[Sequence[str]]) -> None:
    """Check that both parts have the same classes.

    Each part numbers its own class folders, so a missing class would shift the
    numbers of others.

    Args:
        train (Sequence[str], optional): Class names of the training images,
            None if unknown.
        val (Sequence[str], optional): Those of the validation images.

    Raises:
        EvaluationDataError: If the classes differ.
    """
    if train is None or val is None or list(train) == list(val):
        return
    parts = []
    for has, lacks, a, b in (('validation', 'training', val, train),
                             ('training', 'validation', train, val)):
        only = sorted(set(a) - set(b))
        if only:
            parts.append(f'{", ".join(map(repr, only[:10]))} in the {has} data'
                         f' and not in the {lacks} data')
    raise EvaluationDataError(
        'the classes differ: '
        f'{"; ".join(parts) or "their order is not the same"}. Both need the '
        'same ones (folders may be empty), since labels are numbered by them')


# Split files: subsets of the training images


def draw_share(labels: Sequence[int], percent: float, seed: int) -> List[int]:
    """Draw a stratified subset of a data set.

    Args:
        labels (Sequence[int]): Class of each image.
        percent (float): Percentage of each class to keep, in (0, 100], at
            least one image.
        seed (int): Seed of the draw: the same one draws the same images.

    Returns:
        List[int]: Sorted indices of the drawn images.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < percent <= 100:
        raise ValueError(
            f'percent must be above 0 and at most 100, but got {percent}')
    return _draw(labels, seed,
                 lambda size: max(1, round(size * percent / 100)))


def draw_shots(labels: Sequence[int], shots: int, seed: int) -> List[int]:
    """Draw the same number of images of each class.

    Args:
        labels (Sequence[int]): Class of each image.
        shots (int): Number of images of each class, 1 or more.
        seed (int): Seed of the draw: the same one draws the same images.

    Returns:
        List[int]: Sorted indices of the drawn images.

    Raises:
        ValueError: If a class has fewer images.
    """
    if shots < 1:
        raise ValueError(f'shots must be 1 or more, but got {shots}')
    smallest = np.unique(labels, return_counts=True)[1].min()
    if smallest < shots:
        raise ValueError(
            f'{shots} images per class were requested, but the smallest class '
            f'has {smallest}')
    return _draw(labels, seed, lambda size: shots)


def _draw(labels: Sequence[int], seed: int,
          how_many: Callable[[int], int]) -> List[int]:
    classes = np.asarray(labels)
    rng = np.random.default_rng(seed)
    drawn: List[int] = []
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
    drawn = draw_share(labels.tolist(), percent, seed)
    write_file(path, ''.join(
        f'{encode_name(names[i])} {labels[i]}\n' for i in drawn))
    return len(drawn)


def read_split(path: str, img_paths: Sequence[str]) -> List[int]:
    """Find the images of a split file.

    Args:
        path (str): The split file.
        img_paths (Sequence[str]): Paths of all images.

    Returns:
        List[int]: Indices of the images in the file.

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
    if missing:
        raise EvaluationDataError(
            f'{len(missing)} images of {path} are not in the training data, '
            f'the first: {missing[0]}')
    return [index[n] for n in names]
