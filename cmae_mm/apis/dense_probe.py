"""Patch features of images that have a map of classes."""
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..datasets.decode import resize_image
from ..datasets.source import open_source
from ..evaluation.dense import IGNORED, patch_labels
from ..progress import Progress
from .checks import ArgumentError, PathLike
from .images import PickedImage
from .pretrained_encoder import PretrainedEncoder

Pair = Tuple[PickedImage, Path]


class DenseSet(NamedTuple):
    """Features of patches, and classes of pixels.

    Args:
        features (torch.Tensor): (N, L, D).
        maps (torch.Tensor): Classes of pixels, numbered from 0 in the order
            of the values in the files, or IGNORED; (N, S, S).
    """

    features: Tensor
    maps: Tensor

    def labelled(self, patch_size: int) -> Tuple[Tensor, Tensor]:
        """Give the patches with a class, (M, D), and the classes, (M, )."""
        labels = patch_labels(self.maps, patch_size)
        known = labels != IGNORED
        return self.features[known], labels[known]


def pair_files(images: PathLike, maps: Path) -> List[Pair]:
    """Find the map of each image: a PNG file of the same name.

    Args:
        images (str | PathLike): Folder of images, list, store or shards.
        maps (Path): Folder of maps.

    Returns:
        List[Tuple[PickedImage, Path]]: Images and maps.

    Raises:
        ArgumentError: If a folder or a map is not there.
        SourceError: If there are no images.
    """
    if not maps.is_dir():
        raise ArgumentError(f'there is no folder {maps}')
    source = open_source(images)
    print(source.describe(), flush=True)
    pairs = [(PickedImage(Path(source.path(i)), partial(source.read, i)),
              (maps / name).with_suffix('.png'))
             for i, name in enumerate(source.names)]
    missing = [there for _, there in pairs if not there.is_file()]
    if missing:
        raise ArgumentError(
            f'{len(missing)} of {len(pairs)} images have no map, the first '
            f'one {missing[0]}; a map is a PNG file of the image\'s name')
    return pairs


def read_map(path: Path, size: int) -> Tensor:
    """Read a map's values, without mixing them, as a square.

    Args:
        path (Path): A PNG file with one value a pixel.
        size (int): S, the side in pixels.

    Returns:
        torch.Tensor: (S, S), int64.

    Raises:
        ArgumentError: If it has several values a pixel.
    """
    with Image.open(path) as image:
        if image.mode not in ('L', 'P', 'I', 'I;16'):
            raise ArgumentError(
                f'{path} has pixels of mode {image.mode}, but a map of '
                'classes has one whole number a pixel')
        values = np.asarray(
            image.resize((size, size), Image.Resampling.NEAREST))
    return torch.from_numpy(values.astype(np.int64))


@torch.no_grad()
def extract_dense(encoder: PretrainedEncoder,
                  pairs: Sequence[Pair],
                  classes: Dict[int, int],
                  batch_size: int = 32) -> DenseSet:
    """Compute the patch features of images, each resized to a square.

    Args:
        encoder (PretrainedEncoder): The encoder.
        pairs (Sequence[Pair]): See :func:`pair_files`.
        classes (Dict[int, int]): Class of each value in the maps; other
            values are ignored.
        batch_size (int): Images at once. Defaults to 32.

    Returns:
        DenseSet: On the CPU.
    """
    size = encoder.img_size
    device = encoder.mean.device
    features: List[Tensor] = []
    maps: List[Tensor] = []
    with Progress(len(pairs), 'patch features') as shown:
        for start in range(0, len(pairs), batch_size):
            chosen = pairs[start:start + batch_size]
            images = torch.stack([_square(encoder, image, size)
                                  for image, _ in chosen]).to(device)
            tokens = encoder.tokens(encoder.normalize(images))
            features.append(encoder.pooled(tokens, 'patch').cpu())
            maps += [_numbered(read_map(path, size), classes)
                     for _, path in chosen]
            shown.update(len(chosen))
    return DenseSet(torch.cat(features), torch.stack(maps))


def classes_of(pairs: Sequence[Pair], size: int, ignore: Sequence[int],
               most: Optional[int] = None) -> Dict[int, int]:
    """Number the values that occur in maps.

    Args:
        pairs (Sequence[Pair]): See :func:`pair_files`.
        size (int): Side that maps are read at.
        ignore (Sequence[int]): Values that are no class.
        most (int, optional): Number of classes; those of the most pixels are
            taken, and others are no class. Defaults to None, all.

    Returns:
        Dict[int, int]: Class of each value, from 0, in the values' order.

    Raises:
        ArgumentError: If there are fewer than two classes.
    """
    pixels: Counter = Counter()
    for _, path in pairs:
        found, counts = read_map(path, size).unique(return_counts=True)
        pixels.update(dict(zip(found.tolist(), counts.tolist())))
    for value in ignore:
        pixels.pop(value, None)
    values = [value for value, _ in pixels.most_common(most)]
    if len(values) < 2:
        raise ArgumentError(
            f'the maps have {len(values)} class(es) beside what is ignored '
            f'({", ".join(map(str, ignore)) or "nothing"}), but a probe needs '
            'two or more')
    return {value: number for number, value in enumerate(sorted(values))}


def _numbered(values: Tensor, classes: Dict[int, int]) -> Tensor:
    numbered = torch.full_like(values, IGNORED)
    for value, number in classes.items():
        numbered[values == value] = number
    return numbered


def _square(encoder: PretrainedEncoder, picked: PickedImage,
            size: int) -> Tensor:
    """Decode an image and resize it, (C, S, S), colours as RGB."""
    array = resize_image(
        encoder.decode(picked.read(), str(picked.path)), (size, size))
    image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    return image[[2, 1, 0]] if encoder.is_bgr else image
