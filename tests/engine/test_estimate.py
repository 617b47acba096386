"""The time that a training is estimated to take."""
import time

import pytest

from cmae_mm.engine import training_step as estimate


def test_slow_first_steps_are_not_in_the_estimate():
    waits = [0.3] * 4

    def step():
        time.sleep(waits.pop() if waits else 0.01)

    # After two steps, a third of 10 is left out.
    assert estimate._time_steps(step, 10, False) < 0.1


@pytest.mark.parametrize('seconds, text', [
    (0.2, '1 s'), (33, '35 s'), (170, '170 s'), (2500, '40 min'),
    (7500, '120 min'), (40_000, '10 h'), (1e6, '10 days')])
def test_an_estimate_is_rounded(seconds, text):
    assert estimate.round_duration(seconds) == text
