"""Semantic segmentation with frozen patch features."""
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..datasets.decode import resize_image
from ..datasets.source import ImageSource
from ..files import PathLike
from ..image_size import ImageSize, patch_grid, to_pair
from ..progress import Progress
from .data import EvaluationDataError
from .features import check_unreadable, print_skipped, try_reading
from .probes import print_table

# Label of ignored pixels.
IGNORED = -1


class Pair(NamedTuple):
    """Path and reader of an image, and the path of its label map."""

    path: str
    read: Callable[[], bytes]
    map: str


def pair_files(images: ImageSource, maps: ImageSource) -> list[Pair]:
    """Find the map of each image: of the same name without suffix.

    Args:
        images (ImageSource): The images.
        maps (ImageSource): The maps.

    Returns:
        list[Pair]: Images and maps.

    Raises:
        EvaluationDataError: If an image has no map, or maps have the same
            name.
    """
    by_name = {os.path.splitext(name)[0]: maps.path(i)
               for i, name in enumerate(maps.names)}
    if len(by_name) < len(maps):
        raise EvaluationDataError(
            f'{maps.place} has several masks with the same name')
    found = [by_name.get(os.path.splitext(name)[0]) for name in images.names]
    if None in found:
        raise EvaluationDataError(
            f'{found.count(None):,} of {len(found):,} images have no mask '
            f'with the same name in {maps.place}, the first: '
            f'{images.path(found.index(None))}')
    return [Pair(images.path(i), partial(images.read, i), str(file))
            for i, file in enumerate(found)]


def read_map(path: PathLike, size: ImageSize) -> Tensor:
    """Read the values of a map, resized with nearest neighbours.

    Args:
        path (str | PathLike): A file with one value per pixel.
        size (int | Sequence[int]): Its side in pixels, or (height, width).

    Returns:
        torch.Tensor: (H, W), int64.

    Raises:
        EvaluationDataError: If it has several values per pixel.
    """
    with Image.open(path) as image:
        if image.mode not in ('L', 'P', 'I', 'I;16'):
            raise EvaluationDataError(
                f'{path} has pixels of mode {image.mode}, but a label map '
                'must have one integer per pixel')
        values = np.asarray(
            image.resize(to_pair(size)[::-1], Image.Resampling.NEAREST))
    return torch.from_numpy(values.astype(np.int64))


@torch.no_grad()
def extract_dense(encoder: Any, pairs: Sequence[Pair],
                  batch_size: int = 32) -> tuple[Tensor, list[int]]:
    """Compute the patch features of images, resized to the encoder's size.

    Unreadable images are skipped and printed.

    Args:
        encoder (PretrainedEncoder): The encoder.
        pairs (Sequence[Pair]): See :func:`pair_files`.
        batch_size (int): Images at once. Defaults to 32.

    Returns:
        tuple: Features, (N, L, D), on the CPU, and numbers of the N readable
        images.

    Raises:
        EvaluationDataError: If more than a tenth of the images are unreadable.
        UnfitImage: If an image does not fit the encoder.
    """
    size = to_pair(encoder.img_size)
    features: list[Tensor] = []
    kept: list[int] = []
    skipped: dict[str, str] = {}
    with Progress(len(pairs), 'patch features') as shown:
        for start in range(0, len(pairs), batch_size):
            images = []
            for number, pair in enumerate(
                    pairs[start:start + batch_size], start):
                image, reason = try_reading(
                    partial(_resize, encoder, pair, size), strict=True)
                if reason:
                    skipped[pair.path] = reason
                else:
                    images.append(image)
                    kept.append(number)
                shown.update(1)
            if images:
                tokens = encoder.tokens(encoder.normalize(
                    torch.stack(images).to(encoder.mean.device)))
                features.append(encoder.pooled(tokens, 'patch').cpu())
    folder = os.path.dirname(pairs[0].path)
    check_unreadable(skipped, len(pairs), folder)
    print_skipped(skipped, f' in {folder}')
    return torch.cat(features), kept


def read_maps(pairs: Sequence[Pair], size: ImageSize,
              classes: Mapping[int, int]) -> Tensor:
    """Read the classes of pixels.

    Args:
        pairs (Sequence[Pair]): See :func:`pair_files`.
        size (int | Sequence[int]): Size of resized maps.
        classes (Mapping[int, int]): Class of each value in the maps; other
            values are ignored.

    Returns:
        torch.Tensor: Classes, or :data:`IGNORED`; (N, H, W), int64.

    Raises:
        EvaluationDataError: If no pixel has a class.
    """
    maps = torch.stack([_numbered(read_map(pair.map, size), classes)
                        for pair in pairs])
    if maps.max() == IGNORED:
        raise EvaluationDataError(
            f'no pixel of the maps, such as {pairs[0].map}, has a class of '
            'the training maps')
    return maps


def classes_of(pairs: Sequence[Pair], size: ImageSize, ignore: Sequence[int],
               most: int | None = None) -> dict[int, int]:
    """Number the values that occur in maps.

    Args:
        pairs (Sequence[Pair]): See :func:`pair_files`.
        size (int | Sequence[int]): Size of resized maps.
        ignore (Sequence[int]): Values to ignore.
        most (int, optional): Number of classes; those with the most pixels are
            used, others are ignored. Defaults to None, all.

    Returns:
        dict[int, int]: Class of each value, from 0, in the values' order.

    Raises:
        EvaluationDataError: If there are fewer than two classes.
    """
    pixels: Counter = Counter()
    for pair in pairs:
        found, counts = read_map(pair.map, size).unique(return_counts=True)
        pixels.update(dict(zip(found.tolist(), counts.tolist())))
    for value in ignore:
        pixels.pop(value, None)
    values = [value for value, _ in pixels.most_common(most)]
    if len(values) < 2:
        raise EvaluationDataError(
            f'the maps have {len(values)} class(es) in addition to ignored '
            f'values ({", ".join(map(str, ignore)) or "nothing"}); at least '
            'two are required')
    return {value: number for number, value in enumerate(sorted(values))}


def _numbered(values: Tensor, classes: Mapping[int, int]) -> Tensor:
    numbered = torch.full_like(values, IGNORED)
    for value, number in classes.items():
        numbered[values == value] = number
    return numbered


def _resize(encoder: Any, pair: Pair, size: tuple[int, int]) -> Tensor:
    """Decode an image and resize it, (C, H, W), colours as RGB."""
    crop = encoder.centre_crop
    array = resize_image(crop.decode(pair.read(), pair.path), size)
    image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    return image[[2, 1, 0]] if crop.settings.is_bgr else image


class DenseScore(NamedTuple):
    """Scores in percent.

    Args:
        miou (float): Mean over classes of intersection over union.
        pixel_accuracy (float): Percentage of correct labelled pixels.
        interval (tuple[float, float]): 95 % interval of ``miou``, by a
            bootstrap over images.
    """

    miou: float
    pixel_accuracy: float
    interval: tuple[float, float]


def patch_labels(maps: Tensor, patch_size: int) -> Tensor:
    """Return the most frequent class of the labelled pixels of each patch.

    Args:
        maps (torch.Tensor): Classes of pixels, numbered from 0, or
            :data:`IGNORED`; (N, H, W), int64, H and W multiples of a patch.
        patch_size (int): Side of a patch in pixels.

    Returns:
        torch.Tensor: (N, L), row by row; for equally frequent classes the
        smaller number, :data:`IGNORED` without labelled pixels.
    """
    count, height, width = maps.shape
    pixels = maps.view(count, height // patch_size, patch_size,
                       width // patch_size, patch_size)
    pixels = pixels.transpose(2, 3).reshape(
        count, -1, patch_size * patch_size)
    classes = max(int(maps.max()) + 1, 1)
    # Ignored pixels are counted as an additional class, then dropped.
    votes = torch.zeros(*pixels.shape[:2], classes + 1, dtype=torch.int64)
    own = torch.where(pixels == IGNORED, classes, pixels)
    votes.scatter_add_(2, own, torch.ones_like(own))
    most, label = votes[..., :classes].max(dim=2)
    return torch.where(most > 0, label, IGNORED)


def confusions(predicted: Tensor, maps: Tensor, classes: int) -> np.ndarray:
    """Compute the confusion matrix of each image.

    Args:
        predicted (torch.Tensor): Predicted classes of patches, (N, L), row by
            row.
        maps (torch.Tensor): Classes of pixels, (N, H, W), see
            :func:`patch_labels`.
        classes (int): Number of classes.

    Returns:
        np.ndarray: Pixels by true and predicted class, (N, C, C), int64.
    """
    grid = patch_grid(maps.shape[1:], predicted.shape[1])
    patch = maps.shape[-1] // grid[1]
    pixels = predicted.view(-1, *grid).repeat_interleave(
        patch, 1).repeat_interleave(patch, 2)
    counted = np.empty((len(maps), classes, classes), np.int64)
    for number, (found, true) in enumerate(zip(pixels, maps)):
        labelled = true != IGNORED
        pairs = true[labelled] * classes + found[labelled]
        counted[number] = torch.bincount(
            pairs, minlength=classes**2).view(classes, classes).numpy()
    return counted


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Compute the mean intersection over union of occurring classes.

    Args:
        confusion (np.ndarray): Pixels by true and predicted class,
            (..., C, C).

    Returns:
        np.ndarray: Mean over the classes with a true pixel, (...), in [0, 1].
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    true, found = confusion.sum(-1), confusion.sum(-2)
    union = true + found - hits
    there = true > 0
    iou = np.where(there, hits / np.maximum(union, 1), 0.)
    return iou.sum(-1) / np.maximum(there.sum(-1), 1)


def dense_score(counted: np.ndarray, resamples: int = 1000, seed: int = 0
                ) -> DenseScore:
    """Compute scores from confusion matrices.

    Args:
        counted (np.ndarray): See :func:`confusions`, (N, C, C).
        resamples (int): Number of bootstrap resamples. Defaults to 1000.
        seed (int): Seed of the resampling. Defaults to 0.

    Returns:
        DenseScore: The scores of all images together.
    """
    total = counted.sum(0)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(
        len(counted), np.full(len(counted), 1 / len(counted)), resamples)
    drawn = np.einsum('rn,nij->rij', weights, counted)
    low, high = np.percentile(100 * mean_iou(drawn), [2.5, 97.5])
    return DenseScore(
        100 * float(mean_iou(total)),
        100 * float(np.trace(total) / total.sum()),
        (float(low), float(high)))


def report_dense(predicted: Mapping[str, Tensor], maps: Tensor,
                 classes: int) -> dict[str, Any]:
    """Print the scores for each value of a setting, and return them.

    Args:
        predicted (Mapping[str, torch.Tensor]): Predicted classes of patches,
            (N * L, ), by the setting in words.
        maps (torch.Tensor): See :func:`confusions`.
        classes (int): Number of classes.

    Returns:
        dict[str, Any]: ``miou``, ``pixel_accuracy``, and ``interval`` of the
        best value, its words as ``best``, and ``all`` mIoU.
    """
    scores = {
        name: dense_score(confusions(
            found.cpu().view(len(maps), -1), maps, classes))
        for name, found in predicted.items()}
    best = max(scores, key=lambda name: scores[name].miou)
    print_table(
        ['', 'mIoU %', 'pixels %'],
        [[f'{name}{" *" if name == best else ""}',
          f'{s.miou:.2f} [{s.interval[0]:.2f}, {s.interval[1]:.2f}]',
          f'{s.pixel_accuracy:.2f}'] for name, s in scores.items()])
    return dict(
        miou=scores[best].miou, pixel_accuracy=scores[best].pixel_accuracy,
        interval=scores[best].interval, best=best,
        all={name: s.miou for name, s in scores.items()})
