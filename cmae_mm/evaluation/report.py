"""Accuracies, their confidence intervals, and how they are printed."""
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from torch import Tensor

# On larger test sets the interval is too narrow to matter.
LARGE_TEST_SET = 10_000


class Score(NamedTuple):
    """Accuracies in percent.

    Args:
        top1 (float): Share of the images that are classified correctly.
        balanced (float): Mean of this share over the classes.
        interval (Tuple[float, float], optional): 95% interval of ``top1`` on
            small test sets.
    """

    top1: float
    balanced: float
    interval: Optional[Tuple[float, float]] = None

    def __str__(self) -> str:
        if self.interval is None:
            return f'{self.top1:.2f}'
        low, high = self.interval
        return f'{self.top1:.2f} [{low:.2f}, {high:.2f}]'


def score(predicted: Tensor, labels: Tensor) -> Score:
    """Score predictions.

    Args:
        predicted (Tensor): Predicted classes, (N, ).
        labels (Tensor): True classes, (N, ).

    Returns:
        Score: The accuracy, with an interval if there are fewer than 10,000
        images.
    """
    correct = (predicted == labels).cpu().numpy()
    interval = bootstrap_interval(correct) if (
        len(correct) < LARGE_TEST_SET) else None
    return Score(100 * correct.mean(), balanced_accuracy(predicted, labels),
                 interval)


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Average the recall over the classes that have an image, in percent.

    Args:
        predicted (Tensor): Predicted classes, (N, ).
        labels (Tensor): True classes, (N, ).

    Returns:
        float: The balanced accuracy, as scikit-learn's.
    """
    images = labels.bincount()
    hits = labels[predicted == labels].bincount(minlength=len(images))
    recall = hits[images > 0].double() / images[images > 0]
    return 100 * recall.mean().item()


def bootstrap_interval(correct: np.ndarray,
                       confidence: float = 0.95,
                       resamples: int = 10_000,
                       seed: int = 0) -> Tuple[float, float]:
    """Give the percentile bootstrap interval of an accuracy.

    Args:
        correct (np.ndarray): Whether each image is classified correctly, bool,
            (N, ).
        confidence (float): Confidence level of the interval. Defaults to 0.95.
        resamples (int): Number of bootstrap resamples. Defaults to 10,000.
        seed (int): Seed of the resampling. Defaults to 0.

    Returns:
        Tuple[float, float]: Lower and upper end, in percent.
    """
    count = len(correct)
    # Hits among N images drawn with replacement are binomial.
    hits = np.random.default_rng(seed).binomial(count, correct.mean(),
                                                resamples)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(100 * hits / count, [tail, 100 - tail])
    return float(low), float(high)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in aligned columns."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for number, row in enumerate(cells):
        print('  '.join(c.ljust(w) for c, w in zip(row, widths)).rstrip())
        if number == 0:
            print('  '.join('-' * w for w in widths))


def report_sweep(name: str, predicted: Dict[float, Tensor],
                 labels: Tensor) -> Dict[str, Any]:
    """Print the accuracy for each value of a setting; give all of them.

    Args:
        name (str): Name of the setting.
        predicted (Dict[float, Tensor]): Predicted classes, (N, ), by value of
            the setting.
        labels (Tensor): True classes, (N, ).

    Returns:
        Dict[str, Any]: ``top1`` and ``balanced`` of the best value, that
        value as ``best_<name>``, its ``interval``, and the top-1 accuracy of
        each value.
    """
    scores = {value: score(p, labels) for value, p in predicted.items()}
    best = max(scores, key=lambda value: scores[value].top1)
    print_table([name, 'top-1 %', 'balanced %'],
                [[f'{value:g}{" *" if value == best else ""}', scored,
                  f'{scored.balanced:.2f}']
                 for value, scored in scores.items()])
    return {
        'top1': scores[best].top1,
        'balanced': scores[best].balanced,
        f'best_{name}': best,
        'interval': scores[best].interval,
        **{f'{value:g}': scored.top1
           for value, scored in scores.items()}
    }
