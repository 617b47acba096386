"""Figures of a pre-training's health, and the rules that they are judged by.

Thresholds lie between healthy and broken runs that were measured,
docs/health.md; that of a collapse follows from its definition.
"""
import math
from typing import (
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
)

import torch
import torch.nn.functional as F
from torch import Tensor

Row = Mapping[str, float]
# Measurements over which a figure is averaged: single batches scatter.
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
            Images whose features are not finite are left out.

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
    r"""Compute how far the directions of features are spread.

    The standard deviation over the images of each coordinate of
    :math:`z / \lVert z \rVert`, averaged over the coordinates and multiplied
    by :math:`\sqrt D` (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        features (Tensor): Features of N images, (N, D), of any float type.
            Images whose features are not finite are left out.

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
    """Give the place of each image's own target among all targets.

    Targets are in the order of their cosine to the prediction.

    Args:
        predictions (Tensor): Predictions y_s^p of N images, (N, E).
        targets (Tensor): Target projections z_t^p, (M, E), M >= N.
        first (int): Which of the targets is the first prediction's own.
            Defaults to 0.

    Returns:
        Tensor: Whole numbers from 1 (its own target is the nearest) to M,
        (N, ).
    """
    rho = F.normalize(predictions.float(), dim=1) @ F.normalize(
        targets.float(), dim=1).t()
    index = torch.arange(len(rho), device=rho.device)[:, None] + first
    return (rho > rho.gather(1, index)).sum(dim=1) + 1


# Rules


class HealthWarning(NamedTuple):
    """Something about a run that a person should look at.

    Args:
        name (str): What it is, in a word.
        since (int): The iteration at which it was found.
        text (str): What was measured, what it means, and what to do.
    """

    name: str
    since: int
    text: str


class Recent:
    """The last measurements of a run.

    Args:
        rows (Sequence[Row]): Measurements, each with ``iter``.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def mean(self, name: str, first: bool = False) -> float:
        """Average a figure over the last measurements, or the first ones.

        Returns:
            float: nan where there are fewer than :data:`WINDOW` of them.
        """
        values = [row[name] for row in self.rows
                  if math.isfinite(row.get(name, math.nan))]
        if len(values) < WINDOW:
            return math.nan
        part = values[:WINDOW] if first else values[-WINDOW:]
        return sum(part) / WINDOW


def merge_rows(rows: Sequence[Row]) -> List[Dict[str, float]]:
    """Put what was logged of one iteration into one row, in their order."""
    merged: Dict[float, Dict[str, float]] = {}
    for row in rows:
        if 'loss' in row or 'health/erank_online' in row:
            merged.setdefault(row['iter'], {}).update(row)
    return [merged[i] for i in sorted(merged)]


# Chance is 0, a collapse 1.
COLLAPSED_COSINE = 0.9
# Of what it was in the first measurements: healthy runs fell to 0.63 at the
# least, one with too high a rate to 0.2.
FALLEN_RANK = 0.4
# Healthy runs had 64 and 128 targets; 4 were solved without learning.
FEW_TARGETS = 16
# Healthy runs had 25 and more, one whose target followed at once 0.3.
DISTANCE_PER_RATE = 1.


def _collapse(recent: Recent) -> Optional[str]:
    near = recent.mean('rho_neg')
    if not near > COLLAPSED_COSINE:
        return None
    return (f'predictions are as near to the targets of other images as to '
            f'their own (rho_neg {near:.2f}): the features have collapsed; '
            'lower the learning rate, and look at the target\'s momentum')


def _fallen_rank(recent: Recent) -> Optional[str]:
    for name in ('target', 'online'):
        first = recent.mean(f'health/erank_{name}', first=True)
        now = recent.mean(f'health/erank_{name}')
        if now < FALLEN_RANK * first:
            return (f'the effective rank of the {name} features has fallen '
                    f'from {first:.1f} to {now:.1f}: images become alike, as '
                    'with too high a learning rate; lower it and start anew')
    return None


def _few_targets(recent: Recent) -> Optional[str]:
    count = recent.mean('health/targets')
    if not count < FEW_TARGETS:
        return None
    return (f'an image is told apart from {count - 1:.0f} others alone, which '
            'takes no good features (acc_ct is high from the start), and '
            'BatchNorm sees as few; take larger batches, or, where memory is '
            'short, model.micro_batch, not accumulative_counts')


def _near_target(recent: Recent) -> Optional[str]:
    rate = recent.mean('lr')
    distance = recent.mean('health/target_distance')
    if not (rate > 0 and distance < DISTANCE_PER_RATE * rate):
        return None
    return (f'the target is hardly behind the online branch (target_distance '
            f'{distance:.1e}): its momentum is too low to average anything; '
            'raise model.target.momentum')


RULES: Dict[str, Callable[[Recent], Optional[str]]] = {
    'collapse': _collapse,
    'fallen rank': _fallen_rank,
    'few targets': _few_targets,
    'near target': _near_target,
}


def find_warnings(rows: Sequence[Row]) -> List[HealthWarning]:
    """Look through all measurements of a run.

    Args:
        rows (Sequence[Row]): What was logged, each with ``iter``.

    Returns:
        List[HealthWarning]: Those that hold at the end of the run, with the
        iteration since when.
    """
    merged = merge_rows(rows)
    # A long run is looked at here and there.
    merged = merged[:WINDOW] + merged[WINDOW::1 + len(merged) // _MOST]
    found: Dict[str, HealthWarning] = {}
    for end in range(1, len(merged) + 1):
        found = warn(merged[:end], found)
    return list(found.values())


def warn(rows: Sequence[Row], before: Mapping[str, HealthWarning]
         ) -> Dict[str, HealthWarning]:
    """Apply all rules to the last measurements.

    Args:
        rows (Sequence[Row]): Merged measurements so far.
        before (Mapping[str, HealthWarning]): What held at the one before.

    Returns:
        Dict[str, HealthWarning]: What holds now, by name.
    """
    recent = Recent(rows)
    holding: Dict[str, HealthWarning] = {}
    for name, rule in RULES.items():
        text = rule(recent)
        if text is not None:
            since = before[name].since if name in before else int(
                rows[-1]['iter'])
            holding[name] = HealthWarning(name, since, text)
    return holding
