"""Split files: a share of the training images, for few-label training."""
import os
from pathlib import Path
from typing import List, Sequence

from mmengine.dataset import BaseDataset

from ..datasets.listing import split_line
from ..datasets.names import decode_name, encode_name
from ..files import write_file
from .data import EvaluationDataError
from .low_shot import draw_share


def write_split(dataset: BaseDataset, percent: float, seed: int,
                path: str) -> int:
    """Draw a share of a data set and write which images it has.

    The file is a list for ``LabelledDataset``: lines of ``<path below the
    folder> <label>``.

    Args:
        dataset (LabelledDataset): All labelled images.
        percent (float): Share of each class in percent, in (0, 100]; at least
            one image of each is taken.
        seed (int): Seed of the draw: the same one draws the same images.
        path (str): The file to write.

    Returns:
        int: Number of images in the split.
    """
    names, labels = dataset.source.names, dataset.source.labels
    drawn = draw_share(labels, percent, seed)
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
