"""Accuracies, their confidence intervals, and how they are printed."""
import json
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from torch import Tensor

# On larger test sets the interval is too narrow to matter.
LARGE_TEST_SET = 10_000


class Score(NamedTuple):
    """Top-1 accuracy in percent, with its 95% interval on small test sets."""

    top1: float
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
    top1 = 100 * correct.mean()
    if len(correct) >= LARGE_TEST_SET:
        return Score(top1)
    return Score(top1, bootstrap_interval(correct))


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
        Dict[str, Any]: ``top1`` of the best value, that value as
        ``best_<name>``, its ``interval``, and one entry for each value.
    """
    scores = {value: score(p, labels) for value, p in predicted.items()}
    best = max(scores, key=lambda value: scores[value].top1)
    print_table([name, 'top-1 %'],
                [[f'{value:g}{" *" if value == best else ""}', scored]
                 for value, scored in scores.items()])
    return {
        'top1': scores[best].top1,
        f'best_{name}': best,
        'interval': scores[best].interval,
        **{f'{value:g}': scored.top1
           for value, scored in scores.items()}
    }


def print_json(result: Dict[str, Any]) -> None:
    """Print a result as one line of JSON, the last of a command's output."""
    print(json.dumps(result), flush=True)
