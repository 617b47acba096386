"""A rank that hangs: the timeout of the process group ends the others."""
import os
import signal
import time
from functools import partial

import pytest
import torch.distributed as dist
from helpers import free_port
from mmengine.config import Config
from mmengine.hooks import Hook
from tiny_training import AtIteration, Linear, end_fork, start_fork
from tiny_training import tiny_runner as make_runner

from cmae_mm.config import ConfigError, check_values
from cmae_mm.engine.device import adapt_to_device, has_accelerator

TIMEOUT = 3
pytestmark = pytest.mark.skipif(
    has_accelerator(), reason='forked ranks cannot use an accelerator')


def rank(number, port, folder, hooks):
    """Train as `cmae train --launcher pytorch` starts a rank on a CPU."""
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    cfg = Config(dict(
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=TIMEOUT))))
    adapt_to_device(cfg)
    runner = make_runner(
        folder, iters=8, checkpoint=dict(interval=100), hooks=hooks(number),
        launcher='pytorch', env_cfg=cfg.env_cfg,
        model_wrapper_cfg=cfg.model_wrapper_cfg)
    runner.cfg.env_cfg = cfg.env_cfg
    runner.train()
    dist.destroy_process_group()


def on_two_ranks(folder, hooks, ends=2):
    """Start two ranks; return their statuses, None for a killed one."""
    port = free_port()
    ranks = [start_fork(partial(rank, n, port, folder, hooks))
             for n in (0, 1)]
    statuses = [end_fork(pid) for pid in ranks[:ends]]
    for pid in ranks[ends:]:
        os.kill(pid, signal.SIGKILL)
        assert end_fork(pid) == -signal.SIGKILL
    return statuses


class InForward(Hook):
    """Makes the model hang in an iteration, before gradients are reduced."""

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 3:
            Linear.forward = lambda *args, **kwargs: time.sleep(1000)


@pytest.mark.parametrize('hook', [
    AtIteration(4, lambda runner: time.sleep(1000)), InForward()],
    ids=['hook', 'model'])
def test_the_other_rank_ends_after_the_timeout(hook, tmp_path, capfd):
    began = time.monotonic()
    status, = on_two_ranks(tmp_path, lambda n: [hook] if n else [], ends=1)
    assert status == 1
    assert time.monotonic() - began < 60  # torch's default is half an hour
    assert f'{TIMEOUT * 1000}ms' in capfd.readouterr().err


def test_a_slow_rank_is_not_ended(tmp_path):
    """It takes longer than the timeout in all, but not at once."""
    def slow(number):
        return [AtIteration(n, lambda runner: time.sleep(number))
                for n in range(1, 6)]

    assert on_two_ranks(tmp_path, slow) == [0, 0]


@pytest.mark.parametrize('timeout', [0, -1, 'long'])
def test_a_wrong_timeout_is_refused(timeout):
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    with pytest.raises(ConfigError, match='timeout must be a number above 0'):
        check_values(cfg)


def test_torchrun_without_launcher_is_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    with pytest.raises(ValueError, match='2 processes.* --launcher pytorch'):
        adapt_to_device(Config(dict(launcher='none')))


def test_batches_are_not_pinned_on_cpus():
    cfg = Config(dict(train_dataloader=dict(pin_memory=True),
                      val_dataloader=None))
    adapt_to_device(cfg)
    assert cfg.train_dataloader.pin_memory is False
