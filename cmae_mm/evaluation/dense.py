"""Semantic segmentation by frozen patch features: labels and scores."""
from typing import NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

# Labels of pixels that belong to no class.
IGNORED = -1


class DenseScore(NamedTuple):
    """Scores in percent.

    Args:
        miou (float): Mean over classes of intersection over union.
        pixel_accuracy (float): Share of the labelled pixels that are right.
        interval (Tuple[float, float]): 95 % interval of ``miou``, by a
            bootstrap over images.
    """

    miou: float
    pixel_accuracy: float
    interval: Tuple[float, float]


def patch_labels(maps: Tensor, patch_size: int) -> Tensor:
    """Give each patch the class that most of its labelled pixels have.

    Args:
        maps (torch.Tensor): Classes of pixels, numbered from 0, or
            :data:`IGNORED`; (N, H, W), int64, H and W multiples of a patch.
        patch_size (int): Side of a patch in pixels.

    Returns:
        torch.Tensor: (N, L), row by row; the smaller number of two classes
        that are equally frequent, :data:`IGNORED` without a labelled pixel.
    """
    count, height, width = maps.shape
    pixels = maps.view(count, height // patch_size, patch_size,
                       width // patch_size, patch_size)
    pixels = pixels.transpose(2, 3).reshape(
        count, -1, patch_size * patch_size)
    classes = int(maps.max()) + 1
    if classes < 1:
        return pixels.new_full(pixels.shape[:2], IGNORED)
    # One more class takes what is ignored, and is left out again.
    votes = torch.zeros(*pixels.shape[:2], classes + 1, dtype=torch.int64)
    own = torch.where(pixels == IGNORED, classes, pixels)
    votes.scatter_add_(2, own, torch.ones_like(own))
    most, label = votes[..., :classes].max(dim=2)
    return torch.where(most > 0, label, IGNORED)


def confusions(predicted: Tensor, maps: Tensor, classes: int) -> np.ndarray:
    """Count, for each image, which class is taken for which.

    Args:
        predicted (torch.Tensor): Predicted classes of patches, (N, L), row by
            row of a square grid.
        maps (torch.Tensor): Classes of pixels, (N, S, S), see
            :func:`patch_labels`.
        classes (int): Number of classes.

    Returns:
        np.ndarray: Pixels by true and predicted class, (N, C, C), int64.
    """
    grid = round(predicted.shape[1]**.5)
    patch = maps.shape[-1] // grid
    pixels = predicted.view(-1, grid, grid).repeat_interleave(
        patch, 1).repeat_interleave(patch, 2)
    counted = np.empty((len(maps), classes, classes), np.int64)
    for number, (found, true) in enumerate(zip(pixels, maps)):
        labelled = true != IGNORED
        pairs = true[labelled] * classes + found[labelled]
        counted[number] = torch.bincount(
            pairs, minlength=classes**2).view(classes, classes).numpy()
    return counted


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Average intersection over union over the classes that there are.

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
    """Score predictions from their confusions.

    Args:
        counted (np.ndarray): See :func:`confusions`, (N, C, C).
        resamples (int): Number of bootstrap resamples. Defaults to 1000.
        seed (int): Seed of the resampling. Defaults to 0.

    Returns:
        DenseScore: The scores of all images together.

    Raises:
        ValueError: If no pixel is labelled.
    """
    total = counted.sum(0)
    if not total.sum():
        raise ValueError('no pixel of these maps has a label')
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(
        len(counted), np.full(len(counted), 1 / len(counted)), resamples)
    drawn = np.einsum('rn,nij->rij', weights, counted)
    low, high = np.percentile(100 * mean_iou(drawn), [2.5, 97.5])
    return DenseScore(
        100 * float(mean_iou(total)),
        100 * float(np.trace(total) / total.sum()),
        (float(low), float(high)))
