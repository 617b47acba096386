"""Images given on the command line, and their crops."""
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.listing import evenly_spaced
from ..datasets.source import open_source
from ..evaluation.features import (CentreCrop, describe_none, print_skipped,
                                   try_reading)
from .arguments import ArgumentError, PathLike

_LISTS = ('.txt', '.csv', '.tsv')


class PickedImage(NamedTuple):
    """An image file, or an image of a source.

    Args:
        path (Path): Its path, for titles.
        read (Callable): Reads the file.
    """

    path: Path
    read: Callable[[], bytes]


def pick_images(named: Sequence[PathLike], most: int) -> list[PickedImage]:
    """List the images of files, folders and other sources.

    Args:
        named (Sequence[str | PathLike]): Image files, or folders, lists
            (``.txt``, ``.csv``, ``.tsv``), stores or shards.
        most (int): Largest number of images from each, evenly spaced.

    Returns:
        list[PickedImage]: The images.

    Raises:
        ArgumentError: If a file does not exist, or no image is named.
        SourceError: If a folder has no images, or a line of a list is wrong.
    """
    picked: list[PickedImage] = []
    for name in named:
        path = Path(name)
        if path.is_dir() or path.suffix.lower() in _LISTS and path.is_file():
            source = open_source(path)
            picked += [
                PickedImage(Path(source.path(i)), partial(source.read, i))
                for i in evenly_spaced(len(source), most)]
        elif path.is_file():
            picked.append(PickedImage(path, path.read_bytes))
        else:
            raise ArgumentError(f'the image {name} does not exist')
    if not picked:
        raise ArgumentError('no image was given; name images or a folder of '
                            'images')
    return picked


def load_crops(picked: Sequence[PickedImage], crop: CentreCrop
               ) -> tuple[list[PickedImage], Tensor]:
    """Read and crop images; skip unreadable ones, and print their number.

    Args:
        picked (Sequence[PickedImage]): Images.
        crop (CentreCrop): Decodes and crops them.

    Returns:
        tuple: The N readable images, and their crops, (N, C, H, W), of the
        images' dtype, colours as RGB.

    Raises:
        ArgumentError: If none can be read.
    """
    found, crops = [], []
    skipped: dict[str, str] = {}
    for image in picked:
        pixels, reason = try_reading(partial(crop.load, image.read,
                                             str(image.path)))
        if reason:
            skipped[str(image.path)] = reason
        else:
            found.append(image)
            crops.append(pixels)
    if not found:
        raise ArgumentError(describe_none(skipped))
    print_skipped(skipped)
    return found, torch.stack(crops)
