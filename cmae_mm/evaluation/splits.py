"""Split files: a share of the training images, for few-label training."""
import os
from pathlib import Path
from typing import Callable, List, Sequence

import numpy as np

from ..datasets.listing import split_line
from ..datasets.names import decode_name, encode_name
from ..datasets.source import ImageSource
from ..files import write_file


class EvaluationDataError(ValueError):
    """Labelled images that cannot be used; the message says why."""


def draw_share(labels: Sequence[int], percent: float, seed: int) -> List[int]:
    """Draw a share of a data set with the balance of its classes.

    Args:
        labels (Sequence[int]): Class of each image.
        percent (float): Share of each class that is kept, in (0, 100], rounded
            to whole images, at least one.
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
            f'{shots} images a class were asked for, but the smallest class '
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
    """Draw a share of a data set and write which images it has.

    The file is a list for ``LabelledDataset``: lines of ``<path below the
    folder> <label>``.

    Args:
        source (ImageSource): All labelled images.
        percent (float): Share of each class in percent, in (0, 100]; at least
            one image of each is taken.
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
        List[int]: Indices of the images that the file names.

    Raises:
        EvaluationDataError: If the file is missing or empty, or names images
            that are not there.
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
    # Paths may be below another folder: as many last parts count as it has.
    depth = names[0].count('/') + 1
    index = {
        '/'.join(p.replace(os.sep, '/').split('/')[-depth:]): i
        for i, p in enumerate(img_paths)
    }
    missing = [n for n in names if n not in index]
    if missing:
        raise EvaluationDataError(
            f'{len(missing)} images of {path} are not in the training data, '
            f'the first one: {missing[0]}')
    return [index[n] for n in names]
