"""Evaluation with few labels: drawing them, and logistic regression."""
from typing import Callable, Dict, List, Sequence

import numpy as np
import torch

from .features import FeatureSet


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


def fit_logistic_regression(train: FeatureSet, test: FeatureSet,
                            inverse_penalty: float = 1.) -> torch.Tensor:
    """Classify by scikit-learn's logistic regression on frozen features.

    Features are standardised by the training features first.

    Args:
        train (FeatureSet): Features of a few labelled images.
        test (FeatureSet): Features to classify.
        inverse_penalty (float): Inverse of the L2 penalty's strength,
            scikit-learn's ``C``. Defaults to 1.

    Returns:
        torch.Tensor: Predicted classes, (N, ).

    Raises:
        ImportError: If scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError('low-shot evaluation needs scikit-learn: '
                          'pip install scikit-learn') from error
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=inverse_penalty, max_iter=5000))
    classifier.fit(train.features.double().cpu().numpy(),
                   train.labels.cpu().numpy())
    predicted = classifier.predict(test.features.double().cpu().numpy())
    return torch.from_numpy(predicted).to(test.labels.device)


def low_shot(train: FeatureSet, test: FeatureSet, shots: Sequence[int],
             trials: int = 5,
             inverse_penalty: float = 1.) -> Dict[int, List[float]]:
    """Measure logistic regression on a few images of each class.

    Args:
        train (FeatureSet): Features that the few images are drawn from.
        test (FeatureSet): Features to classify.
        shots (Sequence[int]): Numbers of images of each class.
        trials (int): Number of draws, with seeds from 0. Defaults to 5.
        inverse_penalty (float): Inverse of the L2 penalty's strength,
            scikit-learn's ``C``. Defaults to 1.

    Returns:
        Dict[int, List[float]]: Top-1 accuracies in percent, one for each
        draw, by number of images of each class.
    """
    accuracies: Dict[int, List[float]] = {}
    for count in shots:
        accuracies[count] = []
        for seed in range(trials):
            few = draw_shots(train.labels.cpu().numpy(), count, seed)
            predicted = fit_logistic_regression(
                FeatureSet(train.features[few], train.labels[few]), test,
                inverse_penalty)
            accuracies[count].append(
                100 * (predicted == test.labels).double().mean().item())
    return accuracies
