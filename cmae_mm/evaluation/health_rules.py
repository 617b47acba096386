"""What a run's figures say of its health, in words.

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

Row = Mapping[str, float]
# Measurements over which a figure is averaged: single batches scatter.
WINDOW = 5
_MOST = 400


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
