"""Saving and finding checkpoints, with injected faults."""
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from tiny_training import (AtIteration, Score, content, end_fork, log, names,
                           on_ranks, start_fork, tiny_runner)

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.engine import runner as runner_module
from cmae_mm.engine.resuming import find_newest_complete, list_checkpoints


def newest(folder):
    return find_newest_complete(list_checkpoints(str(folder)))


def test_killed_process_leaves_an_intact_checkpoint(tmp_path):
    """Kill -9 at random moments of a run that saves without a pause."""
    draw, reached, torn = random.Random(0), 0, 0
    for _ in range(25):
        pid = start_fork(
            lambda: tiny_runner(
                tmp_path, iters=10**6, width=20000,
                checkpoint=dict(max_keep_ckpts=1)).train())
        before, deadline = names(tmp_path), time.monotonic() + 60
        while names(tmp_path) == before and time.monotonic() < deadline:
            time.sleep(0.01)  # until it has got anywhere
        time.sleep(draw.random() * 0.5)
        os.kill(pid, signal.SIGKILL)
        assert end_fork(pid) == -signal.SIGKILL
        torn += len(names(tmp_path, '.saving-*'))
        found = newest(tmp_path)
        if reached:
            assert found is not None
        if found is not None:
            # no step of an earlier life is lost, and none was damaged
            done = content(found)['meta']['iter']
            assert done >= reached
            reached = done
        assert not names(tmp_path, '*.damaged')
        assert len(names(tmp_path)) <= 2
    assert reached >= 25 and torn > 0
    # what the killed ones left is cleaned up, and one file is kept
    tiny_runner(tmp_path, iters=reached + 1, width=20000,
                checkpoint=dict(max_keep_ckpts=1)).train()
    assert names(tmp_path) == [f'iter_{reached + 1}.pth']
    assert not names(tmp_path, '.saving-*')


def test_replaced_checkpoints_are_removed_after_the_write(
        tmp_path, monkeypatch):
    """At each flush to disk the previous checkpoint is still there."""
    seen, fsync = [], os.fsync

    def watch(file):
        seen.append(tuple(names(tmp_path)))
        fsync(file)

    monkeypatch.setattr(os, 'fsync', watch)
    tiny_runner(
        tmp_path, iters=2, hooks=[Score()],
        checkpoint=dict(max_keep_ckpts=1, save_best='acc')).train()
    first, second = (('best_acc_iter_1.pth', 'iter_1.pth'),
                     ('best_acc_iter_2.pth', 'iter_2.pth'))
    for old, new in zip(first, second):
        assert any(old in there and new not in there for there in seen)
        assert any(old in there and new in there for there in seen)
    assert names(tmp_path) == sorted(second)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / 'small'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1M', 'tmpfs', str(folder)]
    if shutil.which('mount') is None or subprocess.run(
            mount, capture_output=True).returncode:
        pytest.skip('a small file system cannot be mounted here')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(folder):
    """Leave no room for another checkpoint."""
    def action(runner):
        (folder / 'filling').write_bytes(
            bytes(shutil.disk_usage(folder).free - 65536))
    return action


def test_full_disk_stops_training_with_one_sentence(full_disk, tmp_path):
    options = dict(out_dir=str(full_disk))
    runner = tiny_runner(
        tmp_path / 'run', iters=9, width=2000, checkpoint=options,
        hooks=[AtIteration(3, fill(full_disk))])
    with pytest.raises(CheckpointError) as error:
        runner.train()
    assert runner.iter <= 3
    said = str(error.value)
    assert 'iter_3.pth cannot be written: No space left' in said
    assert 'MB or more on the disk of' in said and 'are intact' in said
    assert '\n' not in said
    saved = full_disk / 'run'
    assert names(saved) == ['iter_1.pth', 'iter_2.pth']
    assert not names(saved, '.saving*')
    assert newest(saved).name == 'iter_2.pth'
    # with free space the same command resumes
    (full_disk / 'filling').unlink()
    runner = tiny_runner(
        tmp_path / 'run', iters=4, width=2000, checkpoint=options)
    runner.train()
    assert newest(saved).name == 'iter_4.pth'


def test_saves_are_between_optimizer_steps(tmp_path):
    tiny_runner(tmp_path / 'iter', iters=8, accumulate=3).train()
    assert names(tmp_path / 'iter') == [
        'iter_3.pth', 'iter_6.pth', 'iter_8.pth']
    # 4 iterations an epoch: the step that the end of epoch 1 waits for
    tiny_runner(tmp_path / 'epoch', epochs=2, accumulate=3).train()
    assert names(tmp_path / 'epoch') == ['epoch_1.pth', 'epoch_2.pth']
    meta = content(tmp_path / 'epoch/epoch_1.pth')['meta']
    assert (meta['epoch'], meta['iter']) == (1, 6)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    def spoil(runner):
        runner.model.layer.weight.data[0, 0] = float('nan')

    tiny_runner(
        tmp_path, iters=6, hooks=[AtIteration(4, spoil), Score()],
        checkpoint=dict(max_keep_ckpts=1, save_best='acc')).train()
    assert names(tmp_path) == ['best_acc_iter_3.pth', 'iter_3.pth']
    assert torch.isfinite(
        content(tmp_path / 'iter_3.pth')['state_dict']['layer.weight']).all()
    assert log(tmp_path).count('Parameters are not finite') == 1


def test_ranks_agree_on_checkpoints_and_failures(full_disk, tmp_path):
    options = dict(
        launcher='pytorch', model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None))
    work = tmp_path / 'run'

    def train(number, iters, hooks=()):
        if number == 1:  # as on a network disk whose listing lags
            runner_module.list_checkpoints = lambda *args: []
        runner = tiny_runner(
            work, iters=iters, width=2000, hooks=hooks,
            checkpoint=dict(out_dir=str(full_disk)), **options)
        try:
            runner.train()
            (tmp_path / f'end_{number}').write_text(str(runner.iter))
        except CheckpointError as error:
            (tmp_path / f'end_{number}').write_text(str(error))
            raise SystemExit(1) from None

    def ends():
        return [(tmp_path / f'end_{n}').read_text() for n in range(2)]

    assert on_ranks(lambda n: train(n, 3), tmp_path) == [0, 0]
    bad = full_disk / 'run/iter_3.pth'
    bad.write_bytes(bad.read_bytes()[:-1000])
    assert on_ranks(lambda n: train(n, 4), tmp_path) == [0, 0]
    assert ends() == ['4', '4']
    assert names(full_disk / 'run', '*.damaged') == ['iter_3.pth.damaged']
    # only rank 0 writes and fails, and both end with its sentence
    hook = [AtIteration(5, fill(full_disk))]
    assert on_ranks(
        lambda n: train(n, 9, hook if n == 0 else ()), tmp_path) == [1, 1]
    assert ends()[0] == ends()[1] and 'iter_5.pth cannot be' in ends()[0]


def test_all_configs_use_the_atomic_hook():
    """By their base, whose hook none replaces."""
    for path in (ROOT / 'configs').rglob('*.py'):
        text = path.read_text()
        assert text.count('CheckpointHook') == text.count(
            'mmpretrain.AtomicCheckpointHook'), path
        assert '_base_ = ' in text or '_base_' in path.parts, path
    base = Config.fromfile(ROOT / 'configs/_base_/default_runtime.py')
    assert base.default_hooks.checkpoint.type.endswith('AtomicCheckpointHook')
