"""Resuming: which checkpoint is used, and what is logged."""
import errno
import json
import os
import re
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_training
import torch
from tiny_training import (AtIteration, Score, content, end_fork, log, names,
                           on_ranks, start_fork, tiny_runner)

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.datasets.names import FileNames
from cmae_mm.engine import AtomicCheckpointHook
from cmae_mm.engine.resuming import find_newest_complete, list_checkpoints

FAULTS = {
    'truncated': lambda data: data[:len(data) // 2],
    'emptied': lambda data: b'',
    'zero-filled': lambda data: bytes(len(data)),
    '4 KB zeroed': lambda data: data[:8192] + bytes(4096) + data[12288:],
    'one bit': lambda data: data[:9000] + bytes([data[9000] ^ 1]) +
    data[9001:],
}


@pytest.mark.parametrize('fault', FAULTS)
def test_checkpoint_before_a_damaged_one_is_used(fault, tmp_path):
    tiny_runner(tmp_path, iters=3, width=2000).train()
    whole = (tmp_path / 'iter_3.pth').read_bytes()
    (tmp_path / 'iter_3.pth').write_bytes(FAULTS[fault](whole))
    runner = tiny_runner(tmp_path, iters=4, width=2000)
    runner.train()
    assert f'Resuming from {tmp_path}/iter_2.pth' in log(tmp_path)
    assert 'renamed to iter_3.pth.damaged' in log(tmp_path)
    assert names(tmp_path) == [
        'iter_1.pth', 'iter_2.pth', 'iter_3.pth', 'iter_3.pth.damaged',
        'iter_4.pth'
    ]
    # made again, from where it was
    again = content(tmp_path / 'iter_3.pth')
    assert again['meta']['iter'] == 3 and runner.iter == 4


def test_only_damaged_checkpoints_raise(tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    for path in tmp_path.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(CheckpointError,
                       match='all 2 checkpoints in .* are damaged.*no-'):
        tiny_runner(tmp_path, iters=3).train()
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']


def test_resume_from_needs_an_intact_file(tmp_path):
    tiny_runner(tmp_path, iters=3).train()
    bad = tmp_path / 'iter_3.pth'
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='iter_3.pth'):
        tiny_runner(tmp_path, iters=4, resume_from=str(bad)).train()
    assert bad.exists()
    with pytest.raises(CheckpointError, match='no checkpoint .*none.pth'):
        tiny_runner(tmp_path, iters=4, resume_from='none.pth').train()


@pytest.mark.parametrize('pointer', [None, '', '/nowhere/iter_9.pth'])
def test_last_checkpoint_is_not_needed(pointer, tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    last = tmp_path / 'last_checkpoint'
    assert last.read_text() == str(tmp_path / 'iter_2.pth')
    last.unlink() if pointer is None else last.write_text(pointer)
    before = (tmp_path / 'iter_1.pth').stat().st_mtime_ns
    runner = tiny_runner(tmp_path, iters=3)
    runner.train()
    assert runner.iter == 3 and last.read_text().endswith('/iter_3.pth')
    assert (tmp_path / 'iter_1.pth').stat().st_mtime_ns == before


def test_moved_work_folder_resumes(tmp_path):
    old, new = tmp_path / 'old', tmp_path / 'new'
    options = dict(max_keep_ckpts=2, save_best='acc')
    tiny_runner(old, iters=3, checkpoint=options, hooks=[Score()]).train()
    assert names(old) == ['best_acc_iter_3.pth', 'iter_2.pth', 'iter_3.pth']
    old.rename(new)
    runner = tiny_runner(new, iters=5, checkpoint=options, hooks=[Score()])
    runner.train()
    # what was kept and best in the old place is known in the new one
    assert names(new) == ['best_acc_iter_5.pth', 'iter_4.pth', 'iter_5.pth']
    assert not old.exists()
    info = content(new / 'iter_5.pth')['message_hub']['runtime_info']
    assert info['last_ckpt'] == 'iter_5.pth'
    assert info['best_ckpt'] == 'best_acc_iter_5.pth'


def test_separate_checkpoint_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    options = dict(out_dir='~/big')
    tiny_runner(tmp_path / 'run', iters=2, checkpoint=options).train()
    assert names(tmp_path / 'big/run') == ['iter_1.pth', 'iter_2.pth']
    runner = tiny_runner(tmp_path / 'run', iters=3, checkpoint=options)
    runner.train()
    assert 'run/iter_2.pth' in log(tmp_path / 'run') and runner.iter == 3
    with pytest.raises(ValueError, match='local folders'):
        AtomicCheckpointHook(out_dir='s3://bucket')
    with pytest.raises(TypeError, match="unexpected keyword .* 'on_error'"):
        AtomicCheckpointHook(on_error='continue')


def test_a_new_run_never_overwrites_an_old_one(tmp_path):
    options = dict(max_keep_ckpts=1, save_best='acc')

    def start():
        tiny_runner(tmp_path, iters=2, checkpoint=options, resume=False,
                    hooks=[Score()]).train()

    start()
    first = (tmp_path / 'iter_2.pth').read_bytes()
    saved = ['best_acc_iter_2.pth', 'iter_2.pth']
    start()
    start()
    assert (tmp_path / 'previous_1/iter_2.pth').read_bytes() == first
    for folder in ('', 'previous_1', 'previous_2'):
        assert names(tmp_path / folder) == saved
    assert 'checkpoints of an earlier run to' in log(tmp_path)


def test_resuming_from_an_earlier_checkpoint_keeps_later_ones(tmp_path):
    tiny_runner(tmp_path, iters=5).train()
    runner = tiny_runner(
        tmp_path, iters=4, resume_from=str(tmp_path / 'iter_2.pth'))
    runner.train()
    assert names(tmp_path) == [f'iter_{i}.pth' for i in range(1, 5)]
    assert names(tmp_path / 'previous_1') == [
        f'iter_{i}.pth' for i in range(3, 6)]


def test_load_from_starts_a_new_run(tmp_path):
    tiny_runner(tmp_path / 'a', iters=3).train()
    weights = str(tmp_path / 'a/iter_3.pth')
    starts = []
    watch = AtIteration(1, lambda r: starts.append(r.iter))
    runner = tiny_runner(
        tmp_path / 'b', iters=2, load_from=weights, hooks=[watch])
    runner.train()
    assert starts == [0] and runner.iter == 2
    # after an interruption it resumes from its own checkpoint
    runner = tiny_runner(
        tmp_path / 'b', iters=4, load_from=weights, hooks=[watch])
    runner.train()
    assert starts == [0] and runner.iter == 4
    assert 'is ignored: the run resumes' in log(tmp_path / 'b')


@pytest.mark.parametrize('length, setting', [
    (dict(iters=3), 'max_iters'), (dict(epochs=2), 'max_epochs')])
def test_finished_run_logs_and_ends(length, setting, tmp_path):
    tiny_runner(tmp_path, **length).train()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.pth')}
    steps = []
    runner = tiny_runner(tmp_path, **length, hooks=[
        AtIteration(i, lambda r: steps.append(r.iter)) for i in range(20)])
    runner.train()
    assert not steps and 'This run is finished' in log(tmp_path)
    assert f'{setting} and the end of param_scheduler' in log(tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.pth')}


def test_shorter_epochs_do_not_finish_a_run(tmp_path):
    """Twice the batch: as many iterations as all of the new epochs have."""
    tiny_runner(tmp_path, epochs=2).train()
    runner = tiny_runner(tmp_path, epochs=4, batch_size=8)
    runner.train()
    assert 'This run is finished' not in log(tmp_path)
    assert runner.epoch == 4 and runner.iter == 8
    assert (tmp_path / 'epoch_4.pth').exists()


def test_other_optimizer_setting_is_logged(tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    tiny_runner(tmp_path, iters=3).train()
    assert 'keeps its optimizer settings' not in log(tmp_path)
    tiny_runner(
        tmp_path, iters=4, optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.9, momentum=0.9))).train()
    assert 'keeps its optimizer settings' in log(tmp_path)
    assert 'config has 0.9' in log(tmp_path)


def test_other_weight_decay_of_a_later_group_is_logged(tmp_path):
    def run(iters, decay):
        tiny_runner(tmp_path, iters=iters, optim_wrapper=dict(
            type='OptimWrapper', paramwise_cfg=dict(
                custom_keys={'layer.weight': dict(decay_mult=0.)}),
            optimizer=dict(type='SGD', lr=0.1, weight_decay=decay))).train()

    run(1, 0.1)
    run(2, 0.3)
    assert 'weight_decay=0.1 (the config has 0.3)' in log(tmp_path)


def rates(folder):
    """Learning rates by iteration."""
    rows = [json.loads(line)
            for path in sorted(folder.glob('*/vis_data/scalars.json'))
            for line in path.read_text().splitlines()]
    return {row['iter']: row['lr'] for row in rows if 'lr' in row}


def cosine(end):
    return [dict(type='CosineAnnealingLR', end=end,
                 convert_to_iter_based=True)]


def test_a_longer_run_follows_its_own_schedule(tmp_path):
    """From the first resumed step on, as if it had begun with it."""
    tiny_runner(tmp_path / 'a', epochs=2, param_scheduler=cosine(2)).train()
    for work in 'ab':
        tiny_runner(tmp_path / work, epochs=4,
                    param_scheduler=cosine(4)).train()
    resumed, fresh = rates(tmp_path / 'a'), rates(tmp_path / 'b')
    assert [resumed[n] for n in range(9, 17)] == pytest.approx(
        [fresh[n] for n in range(9, 17)])
    said = 'Resumed with another param_scheduler'
    assert log(tmp_path / 'a').count(said) == 1
    tiny_runner(tmp_path / 'b', epochs=5, param_scheduler=cosine(4)).train()
    assert said not in log(tmp_path / 'b')


@pytest.mark.parametrize('length, longer, schedule', [
    (dict(epochs=2), dict(epochs=4), dict(
        type='CosineAnnealingLR', T_max=4, convert_to_iter_based=True)),
    (dict(iters=6), dict(iters=12), dict(
        type='LinearLR', start_factor=0.1, by_epoch=False, end=12))])
def test_rates_are_scaled_to_another_batch(length, longer, schedule,
                                           tmp_path):
    """They are those of a run that began with that batch."""
    settings = dict(
        param_scheduler=[schedule],
        auto_scale_lr=dict(enable=True, base_batch_size=4))
    tiny_runner(tmp_path / 'a', **length, **settings).train()
    for batch, work in ((2, 'a'), (2, 'b')):
        tiny_runner(tmp_path / work, **longer, **settings,
                    batch_size=batch).train()
    resumed, fresh = rates(tmp_path / 'a'), rates(tmp_path / 'b')
    first = max(fresh) // 2 + 1  # an epoch has twice as many iterations
    assert [resumed[n] for n in range(first, max(fresh) + 1)] == (
        pytest.approx([fresh[n] for n in range(first, max(fresh) + 1)]))
    assert len({*fresh.values()}) > 4
    said = log(tmp_path / 'a')
    assert 'Learning rates are multiplied by 0.5.' in said
    assert 'keeps its optimizer settings' not in said


def test_rates_are_scaled_to_another_number_of_ranks(tmp_path):
    """2 ranks with 4 images each, then one with 4: half the rate."""
    settings = dict(
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=4, end=4,
                              convert_to_iter_based=True)],
        auto_scale_lr=dict(enable=True, base_batch_size=8))
    ranks = dict(launcher='pytorch', model_wrapper_cfg=dict(
        type='MMDistributedDataParallel', device_ids=None))
    assert on_ranks(lambda number: tiny_runner(
        tmp_path / 'a', epochs=2, **ranks, **{**settings, 'param_scheduler': [
            dict(settings['param_scheduler'][0])]}).train(),
        tmp_path) == [0, 0]
    for work in 'ab':
        tiny_runner(tmp_path / work, epochs=4, **settings).train()
    resumed, fresh = rates(tmp_path / 'a'), rates(tmp_path / 'b')
    assert max(fresh) == 16 and fresh[1] == 0.005
    assert [resumed[n] for n in range(9, 17)] == pytest.approx(
        [fresh[n] for n in range(9, 17)])
    said = log(tmp_path / 'a')
    assert ('a step has 4 images on 1 process(es), but had 8 images on 2'
            in said)
    assert 'keeps its optimizer settings' not in said


@pytest.mark.parametrize('schedule, said', [
    (dict(type='CosineAnnealingLR', T_max=2, end=2), 'has 2 epochs'),
    (dict(type='CosineAnnealingLR', T_max=2), 'has 2 epochs'),
    (dict(type='LinearLR', start_factor=0.1, end=40), 'has 40 epochs'),
    (dict(type='LinearLR', start_factor=0.1, end=2), None),
    (dict(type='CosineAnnealingLR', T_max=3, end=3), None)])
@pytest.mark.parametrize('convert', [True, False])
def test_schedule_of_another_length_is_logged(
        schedule, said, convert, tmp_path):
    tiny_runner(tmp_path, epochs=3, param_scheduler=[
        dict(schedule, convert_to_iter_based=convert)]).train()
    assert log(tmp_path).count('learning rate schedule') == (said is not None)
    if said is not None:
        assert f'schedule {said}, but the training 3' in log(tmp_path)


def test_rates_are_unchanged_with_the_same_batch(tmp_path):
    settings = dict(auto_scale_lr=dict(enable=True, base_batch_size=2))
    tiny_runner(tmp_path, iters=4, **settings).train()
    tiny_runner(tmp_path, iters=8, batch_size=2, accumulate=2,
                **settings).train()
    assert {*rates(tmp_path).values()} == {0.02}
    # nor without auto_scale_lr
    tiny_runner(tmp_path, iters=12, batch_size=1).train()
    assert {*rates(tmp_path).values()} == {0.02}


def test_other_batch_size_is_logged(tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    tiny_runner(tmp_path, iters=3).train()
    assert 'another batch' not in log(tmp_path)
    tiny_runner(tmp_path, iters=4, batch_size=2).train()
    assert ('a step has 2 images on 1 process(es), but had 4 images on 1'
            in log(tmp_path))


def test_other_images_are_logged(tmp_path, monkeypatch):
    for step, files in enumerate([['a.png', 'b.png'], ['a.png', 'b.png'],
                                  ['a.png', 'c.png'], ['a.png']], 1):
        data = tiny_training.Numbers(8 * len(files))
        data.source = SimpleNamespace(names=FileNames.of([files]))
        with monkeypatch.context() as patch:
            patch.setattr(tiny_training, 'Numbers', lambda data=data: data)
            tiny_runner(tmp_path, iters=step).train()
        found = re.findall('other training data: it has (.*?)[.]',
                           log(tmp_path))
        # Logs of one second are read in any order.
        assert {*found} == {*['images of other names', '8 images, but had 16'][
            :max(step - 2, 0)]}


def test_name_of_a_checkpoint_within_an_epoch(tmp_path):
    options = dict(max_keep_ckpts=1)

    def save(runner):
        hook = next(h for h in runner.hooks
                    if isinstance(h, AtomicCheckpointHook))
        hook.save_now(runner, 1, runner.iter + 1, within_epoch=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_runner(tmp_path, epochs=2, checkpoint=options,
                    hooks=[AtIteration(6, save)]).train()
    assert names(tmp_path) == ['epoch_1_iter_6.pth']
    runner = tiny_runner(tmp_path, epochs=2, checkpoint=options)
    runner.train()
    assert 'epoch_1_iter_6.pth' in log(tmp_path) and runner.iter == 8
    assert names(tmp_path) == ['epoch_2.pth']


@pytest.mark.parametrize('kind', ['AtomicCheckpointHook',
                                  'mmengine.CheckpointHook'])
def test_other_names_of_checkpoints_are_refused(kind, tmp_path):
    """A run would not be resumed from them."""
    with pytest.raises(ValueError, match='filename_tmpl.* is not supported'):
        tiny_runner(tmp_path, epochs=1, checkpoint=dict(
            type=kind, filename_tmpl='ckpt-{:03d}.pth'), resume=True).train()


class FaultyFile:
    """A file whose reads fail once so many bytes were read."""

    def __init__(self, file, after, error):
        self.file, self.left, self.error = file, after, error

    def read(self, count=-1):
        return self._count(self.file.read(count))

    def readinto(self, buffer):
        return len(self._count(buffer[:self.file.readinto(buffer)]))

    def _count(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return data

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.mark.parametrize('code, after', [
    (errno.EACCES, None), (errno.EMFILE, None), (errno.ESTALE, None),
    (errno.EIO, 0), (errno.EIO, 100), (errno.EIO, 20_000),
    (errno.ESTALE, 100_000)])
def test_disk_error_is_not_taken_for_damage(
        code, after, tmp_path, monkeypatch):
    """Nothing is renamed, and no older checkpoint is taken."""
    tiny_runner(tmp_path, iters=3, width=2000).train()
    error = OSError(code, os.strerror(code))

    def faulty(path, *args):
        if Path(path).name != 'iter_3.pth':
            return open(path, *args)
        if after is None:
            raise error
        return FaultyFile(open(path, *args), after, error)

    with monkeypatch.context() as patch:
        patch.setattr('cmae_mm.checkpoints.read.open', faulty, raising=False)
        with pytest.raises(CheckpointError) as raised:
            tiny_runner(tmp_path, iters=4, width=2000).train()
    said = str(raised.value)
    assert 'iter_3.pth could not be read' in said and error.strerror in said
    assert 'no file was changed' in said and '\n' not in said
    assert names(tmp_path) == [f'iter_{i}.pth' for i in range(1, 4)]
    runner = tiny_runner(tmp_path, iters=4, width=2000)
    runner.train()
    assert f'Resuming from {tmp_path}/iter_3.pth' in log(tmp_path)


def test_failed_allocation_is_not_taken_for_damage(tmp_path):
    """With less memory than the checkpoint takes, as the system limits it."""
    torch.save(dict(state_dict=dict(a=torch.zeros(2**26))),
               tmp_path / 'iter_1.pth')

    def check():
        used = int(Path('/proc/self/statm').read_text().split()[0])
        limit = used * resource.getpagesize() + 2**26
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            find_newest_complete(list_checkpoints(str(tmp_path)))
        except CheckpointError as error:
            (tmp_path / 'said').write_text(str(error))

    assert end_fork(start_fork(check)) == 0
    assert 'iter_1.pth could not be read' in (tmp_path / 'said').read_text()
    assert names(tmp_path) == ['iter_1.pth']


def test_unreadable_checkpoint_folder_raises(tmp_path, monkeypatch):
    tiny_runner(tmp_path, iters=2).train()

    def fail(self):
        raise OSError(errno.EIO, 'Input/output error', str(self))

    monkeypatch.setattr(Path, 'iterdir', fail)
    with pytest.raises(CheckpointError, match='could not be listed: Input'):
        list_checkpoints(str(tmp_path))
