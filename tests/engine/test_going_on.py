"""What a run goes on from, and what it says of it."""
import pytest
from tiny_training import AtIteration, Score, content, log, names, tiny_runner

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.engine import AtomicCheckpointHook

FAULTS = {
    'truncated': lambda data: data[:len(data) // 2],
    'emptied': lambda data: b'',
    'zero-filled': lambda data: bytes(len(data)),
    '4 KB zeroed': lambda data: data[:8192] + bytes(4096) + data[12288:],
    'one bit': lambda data: data[:9000] + bytes([data[9000] ^ 1]) +
    data[9001:],
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_checkpoint_before_a_damaged_one_is_taken(fault, tmp_path):
    tiny_runner(tmp_path, iters=3, width=2000).train()
    whole = (tmp_path / 'iter_3.pth').read_bytes()
    (tmp_path / 'iter_3.pth').write_bytes(FAULTS[fault](whole))
    runner = tiny_runner(tmp_path, iters=4, width=2000)
    runner.train()
    assert f'Going on from {tmp_path}/iter_2.pth' in log(tmp_path)
    assert 'is now iter_3.pth.damaged' in log(tmp_path)
    assert names(tmp_path) == [
        'iter_1.pth', 'iter_2.pth', 'iter_3.pth', 'iter_3.pth.damaged',
        'iter_4.pth'
    ]
    # made again, from where it was
    again = content(tmp_path / 'iter_3.pth')
    assert again['meta']['iter'] == 3 and runner.iter == 4


def test_nothing_but_damaged_checkpoints_is_said(tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    for path in tmp_path.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(CheckpointError, match='2 are there, all damaged.*no-'):
        tiny_runner(tmp_path, iters=3).train()
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']


def test_a_file_that_is_named_must_be_whole(tmp_path):
    tiny_runner(tmp_path, iters=3).train()
    bad = tmp_path / 'iter_3.pth'
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='beside it is .*iter_2.pth'):
        tiny_runner(tmp_path, iters=4, resume_from=str(bad)).train()
    assert bad.exists()
    with pytest.raises(CheckpointError, match='no checkpoint .*none.pth'):
        tiny_runner(tmp_path, iters=4, resume_from='none.pth').train()


@pytest.mark.parametrize('pointer', [None, '', '/nowhere/iter_9.pth'])
def test_last_checkpoint_is_not_needed(pointer, tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    last = tmp_path / 'last_checkpoint'
    assert last.read_text() == 'iter_2.pth'
    last.unlink() if pointer is None else last.write_text(pointer)
    before = (tmp_path / 'iter_1.pth').stat().st_mtime_ns
    runner = tiny_runner(tmp_path, iters=3)
    runner.train()
    assert runner.iter == 3 and last.read_text() == 'iter_3.pth'
    assert (tmp_path / 'iter_1.pth').stat().st_mtime_ns == before


def test_a_moved_work_folder_goes_on(tmp_path):
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


def test_a_folder_for_checkpoints_alone(tmp_path):
    options = dict(out_dir=str(tmp_path / 'big'))
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
    assert 'earlier run are now in' in log(tmp_path)


def test_going_back_keeps_what_came_after(tmp_path):
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
    # interrupted, it goes on from its own checkpoint
    runner = tiny_runner(
        tmp_path / 'b', iters=4, load_from=weights, hooks=[watch])
    runner.train()
    assert starts == [0] and runner.iter == 4
    assert 'is what this run began with' in log(tmp_path / 'b')


@pytest.mark.parametrize('length, setting', [
    (dict(iters=3), 'max_iters'), (dict(epochs=2), 'max_epochs')])
def test_a_finished_run_says_so_and_ends(length, setting, tmp_path):
    tiny_runner(tmp_path, **length).train()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.pth')}
    steps = []
    runner = tiny_runner(tmp_path, **length, hooks=[
        AtIteration(i, lambda r: steps.append(r.iter)) for i in range(20)])
    runner.train()
    assert not steps and 'This run is finished' in log(tmp_path)
    assert setting in log(tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.pth')}


def test_shorter_epochs_do_not_finish_a_run(tmp_path):
    """Twice the batch: as many iterations as all of the new epochs have."""
    tiny_runner(tmp_path, epochs=2).train()
    runner = tiny_runner(tmp_path, epochs=4, batch_size=8)
    runner.train()
    assert 'This run is finished' not in log(tmp_path)
    assert runner.epoch == 4 and runner.iter == 8
    assert (tmp_path / 'epoch_4.pth').exists()


def test_another_optimizer_setting_is_said(tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    tiny_runner(tmp_path, iters=3).train()
    assert 'keeps the optimizer settings' not in log(tmp_path)
    tiny_runner(
        tmp_path, iters=4, optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.9, momentum=0.9))).train()
    assert 'keeps the optimizer settings' in log(tmp_path)
    assert 'config has 0.9' in log(tmp_path)


def test_another_batch_is_said(tmp_path):
    tiny_runner(tmp_path, iters=2).train()
    tiny_runner(tmp_path, iters=3).train()
    assert 'another batch' not in log(tmp_path)
    tiny_runner(tmp_path, iters=4, batch_size=2).train()
    assert 'another batch (batch_size 4 -> 2)' in log(tmp_path)
