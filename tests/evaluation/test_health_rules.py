"""Health warnings on recorded healthy and broken runs."""
import json
from pathlib import Path

import pytest

from cmae_mm.evaluation.health import find_warnings

# Of tools/health/reference_runs.py, thinned and rounded.
RECORDED = json.loads(
    Path(__file__).with_name('health_runs.json').read_text())
EXPECTED = {
    'rate too high': 'fallen rank',
    'tiny batches': 'few targets',
    'momentum too low': 'near target',
}


def rows_of(name):
    columns = RECORDED[name]
    return [{k: v for k, v in zip(columns, values) if v is not None}
            for values in zip(*columns.values())]


@pytest.mark.parametrize('name', RECORDED)
def test_broken_runs_trigger_their_warning(name):
    found = {w.name: w for w in find_warnings(rows_of(name))}
    assert list(found) == [EXPECTED[name]] if name in EXPECTED else not found
    for warning in found.values():
        # within the first fifth
        assert warning.since <= rows_of(name)[-1]['iter'] / 5


@pytest.mark.parametrize('name', RECORDED)
def test_no_run_triggers_another_warning(name):
    """As the hook looks: after each measurement."""
    rows = rows_of(name)
    found = {w.name for end in range(1, len(rows) + 1)
             for w in find_warnings(rows[:end])}
    assert found <= {EXPECTED.get(name)}


def test_thresholds_have_a_margin_to_measured_values():
    """Twice as bad as healthy, or half as bad as broken, decides alike."""

    def scaled(name, key, factor):
        return [dict(row, **{key: row[key] * factor}) for row in rows_of(name)]

    assert not find_warnings(
        scaled('healthy', 'health/target_distance', 1 / 10))
    assert find_warnings(
        scaled('momentum too low', 'health/target_distance', 2))
    assert not find_warnings(scaled('healthy', 'health/targets', 1 / 2))
    assert find_warnings(scaled('tiny batches', 'health/targets', 2))
    first = rows_of('rate too high')[:5]
    rest = scaled('rate too high', 'health/erank_target', 1.5)[5:]
    assert find_warnings(first + rest)


def test_a_collapse_is_both_cosines_near_one():
    rows = [dict(iter=10 * i, loss=1., rho_pos=0.98, rho_neg=0.97)
            for i in range(1, 8)]
    (warning, ) = find_warnings(rows)
    assert warning.name == 'collapse' and warning.since == 50
    assert 'rho_neg 0.97' in warning.text
