"""What a run's figures say of its health, in words.

The one threshold so far follows from a definition: docs/health.md says what
has been measured, and what is still to be.
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


def _collapse(recent: Recent) -> Optional[str]:
    near = recent.mean('rho_neg')
    if not near > COLLAPSED_COSINE:
        return None
    return (f'predictions are as near to the targets of other images as to '
            f'their own (rho_neg {near:.2f}): the features have collapsed; '
            'lower the learning rate, and look at the target\'s momentum')


COLLAPSED_COSINE = 0.9

RULES: Dict[str, Callable[[Recent], Optional[str]]] = {
    'collapse': _collapse,
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
