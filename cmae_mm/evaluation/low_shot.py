"""Logistic regression on the features of few labelled images."""
from typing import Dict, List, Sequence

import torch

from .features import FeatureSet
from .splits import draw_shots


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
