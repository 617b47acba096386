"""A rank that hangs: the job ends in time and says which one."""
import os
import re
import signal
import time

import pytest
import torch.distributed as dist
from mmengine.hooks import Hook
from tiny_training import AtIteration, Linear, on_ranks, tiny_runner

from cmae_mm.engine.watchdog import HUNG, describe

TIMEOUT = 3


def train(folder, *hooks, **settings):
    tiny_runner(
        folder / 'run', iters=30, launcher='pytorch',
        checkpoint=dict(interval=100),
        custom_hooks=[*hooks, dict(type='WatchdogHook', timeout=TIMEOUT)],
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None),
        **settings).train()


def hang(runner=None):
    time.sleep(1000)


class InForward(Hook):
    """Makes the model hang at an iteration, where the others wait for it."""

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 3:
            Linear.forward = lambda *args, **kwargs: hang()


def in_a_hook(number):
    return [AtIteration(4, hang)] if number == 1 else []


def in_the_model(number):
    return [InForward()] if number == 1 else []


def stopped(number):
    if number != 1:
        return []
    return [AtIteration(
        4, lambda runner: os.kill(os.getpid(), signal.SIGSTOP))]


@pytest.mark.parametrize('hooks_of, said', [
    (in_a_hook, r'rank 1 \(process \d+ on \S+\) hangs in iteration 4, at '
     r'\S+test_hanging.py:\d+ in hang\.'),
    (in_the_model, r'rank 1 \(process \d+ on \S+\) hangs in iteration 4, at '
     r'\S+test_hanging.py:\d+ in hang\.'),
    (stopped, r'rank 1( \(process \d+ on \S+\))? does not answer')])
def test_the_rank_that_hangs_is_named(hooks_of, said, tmp_path, capfd):
    def rank(number):
        train(tmp_path, *hooks_of(number))

    began = time.monotonic()
    statuses = on_ranks(rank, tmp_path, limit=10)
    expected = [HUNG, -signal.SIGKILL if hooks_of is stopped else HUNG]
    assert statuses == expected
    assert time.monotonic() - began < 60
    error = capfd.readouterr().err
    assert 'no rank got on for 3 s (the timeout of WatchdogHook)' in error
    assert re.search(said, error), error


def test_a_run_that_gets_on_is_left_alone(tmp_path):
    """Though it takes longer in all, and waits for another rank at times."""
    class Slow(Hook):

        def after_train_iter(self, runner, *args, **kwargs):
            time.sleep(0.2 * dist.get_rank())

    assert on_ranks(lambda n: train(tmp_path, Slow()), tmp_path) == [0, 0]


def told(count, beats=1, waits=False, stage='iteration 4'):
    return dict(count=count, beats=beats, waits=waits, stage=stage, pid=1,
                host='node', place='here')


@pytest.mark.parametrize('before, now, named', [
    ([told(7), told(5)], [told(7, 2), told(5, 2)], [1]),
    ([told(7), told(7)], [told(7, 2, waits=True), told(7, 2)], [1]),
    ([told(7), told(7)], [told(7, 2, waits=True)] * 2, [0, 1]),
    ([told(7), None], [told(7, 2), None], [1]),
    ([told(7), told(9)], [told(7, 2), told(9)], [1]),
])
def test_who_hangs(before, now, named):
    text = describe(before, now, 5)
    assert [r for r in range(2) if f'rank {r} ' in text] == named
