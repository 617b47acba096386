"""Health values of a pre-training, and rules for warnings.

Thresholds separate measured healthy and broken runs, see docs/health.md. The
threshold of a collapse follows from its definition.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Row = Mapping[str, float]
# Number of measurements to average, because single batches scatter.
WINDOW = 5
_MOST = 400


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    r"""Compute the effective rank of features, RankMe (arXiv 2210.02885).

    .. math::
        \exp\Big(-\sum_k p_k \log p_k\Big), \quad
        p_k = \frac{\sigma_k}{\sum_i \sigma_i} + 10^{-7}

    with the singular values :math:`\sigma_k` of the matrix of features, which
    is not centred.

    Args:
        features (Tensor): Features of N images, (N, D), of any float type.
            Images with non-finite features are skipped.

    Returns:
        Tensor: A float64 scalar, from 1 (all features are multiples of one)
        to min(N, D); nan if no features are left.
    """
    features = features.double()
    features = features[features.isfinite().all(dim=1)]
    if not len(features):
        return features.new_tensor(float('nan'))
    if features.shape[0] > features.shape[1]:
        features = features.t()
    # Squared singular values, from the smaller of the two Gram matrices.
    squared = torch.linalg.eigvalsh(features @ features.t())
    singular = squared.clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-30) + 1e-7
    return (-(share * share.log()).sum()).exp()


@torch.no_grad()
def spread(features: Tensor) -> Tensor:
    r"""Compute the spread of the directions of features.

    The standard deviation over the images of each coordinate of
    :math:`z / \lVert z \rVert`, averaged over the coordinates and multiplied
    by :math:`\sqrt D` (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        features (Tensor): Features of N images, (N, D), of any float type.
            Images with non-finite features are skipped.

    Returns:
        Tensor: A float64 scalar: 0 if all features have one direction, about
        1 if they are spread over all directions; nan for fewer than 2 images.
    """
    features = features.double()
    features = features[features.isfinite().all(dim=1)]
    if len(features) < 2:
        return features.new_tensor(float('nan'))
    directions = F.normalize(features, dim=1)
    return directions.std(dim=0).mean() * features.shape[1]**0.5


@torch.no_grad()
def positive_ranks(predictions: Tensor, targets: Tensor,
                   first: int = 0) -> Tensor:
    """Compute the rank of each image's own target among all targets.

    Targets are sorted by their cosine to the prediction.

    Args:
        predictions (Tensor): Predictions y_s^p of N images, (N, E).
        targets (Tensor): Target projections z_t^p, (M, E), M >= N.
        first (int): Index of the first prediction's own target. Defaults to 0.

    Returns:
        Tensor: Integers from 1 (its own target is the nearest) to M, (N, ).
    """
    rho = F.normalize(predictions.float(), dim=1) @ F.normalize(
        targets.float(), dim=1).t()
    index = torch.arange(len(rho), device=rho.device)[:, None] + first
    return (rho > rho.gather(1, index)).sum(dim=1) + 1


# Rules


class HealthWarning(NamedTuple):
    """A warning about a run.

    Args:
        name (str): Short name.
        since (int): First iteration of the warning.
        text (str): Measurement, meaning and solution.
    """

    name: str
    since: int
    text: str


def _mean(rows: Sequence[Row], name: str, first: bool = False) -> float:
    """Average a value over the last or the first measurements.

    Returns:
        float: nan if there are fewer than :data:`WINDOW`.
    """
    values = [row[name] for row in rows
              if math.isfinite(row.get(name, math.nan))]
    if len(values) < WINDOW:
        return math.nan
    return sum(values[:WINDOW] if first else values[-WINDOW:]) / WINDOW


def merge_rows(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Merge log rows of the same iteration, in order."""
    merged: dict[float, dict[str, float]] = {}
    for row in rows:
        if 'loss' in row or 'health/erank_online' in row:
            merged.setdefault(row['iter'], {}).update(row)
    return [merged[i] for i in sorted(merged)]


# Chance is 0, a collapse 1.
COLLAPSED_COSINE = 0.9
# Relative to the first measurements. Healthy runs stayed above 0.63; a run
# with a too high learning rate fell to 0.2.
FALLEN_RANK = 0.4
# Healthy runs had 64 and 128 targets; 4 need no learning.
FEW_TARGETS = 16
# Healthy runs had 25 or more; a run whose target equals the online branch had
# 0.3.
DISTANCE_PER_RATE = 1.


def _collapse(rows: Sequence[Row]) -> str | None:
    near = _mean(rows, 'rho_neg')
    if not near > COLLAPSED_COSINE:
        return None
    return ('predictions are as close to the targets of other images as to '
            f'their own (rho_neg {near:.2f}): the features have collapsed; '
            "lower the learning rate and check the target's momentum")


def _fallen_rank(rows: Sequence[Row]) -> str | None:
    for name in ('target', 'online'):
        first = _mean(rows, f'health/erank_{name}', first=True)
        now = _mean(rows, f'health/erank_{name}')
        if now < FALLEN_RANK * first:
            return (f'the effective rank of the {name} features has fallen '
                    f'from {first:.1f} to {now:.1f}; features of different '
                    'images become similar, often because of a too high '
                    'learning rate: lower it and start again')
    return None


def _few_targets(rows: Sequence[Row]) -> str | None:
    count = _mean(rows, 'health/targets')
    if not count < FEW_TARGETS:
        return None
    return (f'the contrastive loss and BatchNorm see only {count:.0f} images, '
            'which is too easy (acc_ct is high from the start); use a larger '
            'batch or, if memory is short, model.micro_batch instead of '
            'accumulative_counts')


def _near_target(rows: Sequence[Row]) -> str | None:
    rate = _mean(rows, 'lr')
    distance = _mean(rows, 'health/target_distance')
    if not (rate > 0 and distance < DISTANCE_PER_RATE * rate):
        return None
    return ('the target is almost equal to the online branch (target_distance '
            f'{distance:.1e}); its momentum is too low for an average: raise '
            'model.target.momentum')


RULES: dict[str, Callable[[Sequence[Row]], str | None]] = {
    'collapse': _collapse,
    'fallen rank': _fallen_rank,
    'few targets': _few_targets,
    'near target': _near_target,
}


def find_warnings(rows: Sequence[Row]) -> list[HealthWarning]:
    """Find the warnings of a run.

    Args:
        rows (Sequence[Row]): Logged rows, each with ``iter``.

    Returns:
        list[HealthWarning]: Warnings at the end of the run, each with its
        first iteration.
    """
    merged = merge_rows(rows)
    # Long runs are sampled.
    merged = merged[:WINDOW] + merged[WINDOW::1 + len(merged) // _MOST]
    found: dict[str, HealthWarning] = {}
    for end in range(1, len(merged) + 1):
        found = warn(merged[:end], found)
    return list(found.values())


def warn(rows: Sequence[Row], before: Mapping[str, HealthWarning]
         ) -> dict[str, HealthWarning]:
    """Apply all rules to the last measurements.

    Args:
        rows (Sequence[Row]): Merged measurements so far.
        before (Mapping[str, HealthWarning]): Warnings of the previous
            measurement.

    Returns:
        dict[str, HealthWarning]: Current warnings by name.
    """
    holding: dict[str, HealthWarning] = {}
    for name, rule in RULES.items():
        text = rule(rows)
        if text is not None:
            since = before[name].since if name in before else int(
                rows[-1]['iter'])
            holding[name] = HealthWarning(name, since, text)
    return holding
