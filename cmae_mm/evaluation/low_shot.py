"""Logistic regression on the features of few labelled images."""
import statistics
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

from .features import FeatureSet
from .report import balanced_accuracy, print_table, score
from .splits import draw_shots, read_split


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
             inverse_penalty: float = 1.) -> Dict[int, List[torch.Tensor]]:
    """Classify by logistic regression on a few images per class.

    Args:
        train (FeatureSet): Features that the few images are drawn from.
        test (FeatureSet): Features to classify.
        shots (Sequence[int]): Numbers of images per class.
        trials (int): Number of draws, with seeds from 0. Defaults to 5.
        inverse_penalty (float): Inverse of the L2 penalty's strength,
            scikit-learn's ``C``. Defaults to 1.

    Returns:
        Dict[int, List[torch.Tensor]]: Predicted classes of each draw, by
        number of images per class.
    """
    labels = train.labels.cpu().numpy()
    return {
        count: [fit_logistic_regression(
            _select(train, draw_shots(labels, count, seed)), test,
            inverse_penalty) for seed in range(trials)]
        for count in shots}


def _select(features: FeatureSet, index: List[int]) -> FeatureSet:
    return FeatureSet(features.features[index], features.labels[index])


def report_low_shot(train: FeatureSet, test: FeatureSet,
                    names: Sequence[str], shots: Sequence[int], trials: int,
                    splits: Sequence[Any], inverse_penalty: float
                    ) -> Dict[str, Any]:
    """Print the accuracy for each number of labels, and return them.

    Args:
        train (FeatureSet): See :func:`low_shot`.
        test (FeatureSet): See :func:`low_shot`.
        names (Sequence[str]): Names of the training images.
        shots (Sequence[int]): See :func:`low_shot`.
        trials (int): See :func:`low_shot`.
        splits (Sequence[str | PathLike]): Split files.
        inverse_penalty (float): See :func:`low_shot`.

    Returns:
        Dict[str, Any]: Mean top-1 accuracy by number of labels, its standard
        deviation as ``<number>_std``, mean balanced accuracy as
        ``<number>_balanced``; likewise of each split file, without standard
        deviation.
    """
    result: Dict[str, Any] = {}
    rows = []
    for count, draws in low_shot(train, test, shots, trials,
                                 inverse_penalty).items():
        top1 = [score(found, test.labels).top1 for found in draws]
        balanced = statistics.mean(
            balanced_accuracy(found, test.labels) for found in draws)
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.
        mean = statistics.mean(top1)
        rows.append([f'{count} per class', f'{mean:.2f} +- {spread:.2f}',
                     f'{balanced:.2f}'])
        result.update({str(count): mean, f'{count}_std': spread,
                       f'{count}_balanced': balanced})
    for split in splits:
        name = Path(split).stem
        few = _select(train, read_split(str(split), names))
        found = fit_logistic_regression(few, test, inverse_penalty)
        scored = score(found, test.labels)
        rows.append([name, str(scored), f'{scored.balanced:.2f}'])
        result.update({name: scored.top1, f'{name}_balanced': scored.balanced})
    print(f'logistic regression, {trials} draws (mean and standard '
          f'deviation), {len(test.labels)} validation images')
    print_table(['labels', 'top-1 %', 'balanced %'], rows)
    return result
