"""SIGTERM and Ctrl-C: saving and exit status."""
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, check_threads, free_port, note_threads
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from tiny_training import (AtIteration, Numbers, end_fork, on_ranks,
                           start_fork, tiny_runner)

from cmae_mm.engine.hooks.step_hooks import TrainingStopped


def names(folder):
    return sorted(p.name for p in Path(folder).glob('*.pth'))


def log(folder):
    return '\n'.join(p.read_text() for p in Path(folder).glob('*/*.log'))


@pytest.fixture(autouse=True)
def handlers():
    """Give the test process its handlers back, which a stop keeps."""
    kept = {s: signal.getsignal(s)
            for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1,
                      signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def tell(number):
    return lambda runner: os.kill(os.getpid(), number)


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 75),
                                            (signal.SIGHUP, 75),
                                            (signal.SIGUSR1, 75),
                                            (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_of_the_step(
        number, status, tmp_path):
    def run(iters, *hooks):
        runner = tiny_runner(
            tmp_path, iters=iters, checkpoint=dict(interval=100),
            hooks=hooks)
        runner.train()
        return runner

    with pytest.raises(TrainingStopped) as stop:
        run(9, AtIteration(5, tell(number)))
    assert stop.value.code == status
    assert names(tmp_path) == ['iter_5.pth']
    assert (f'{signal.Signals(number).name}: stopped after iteration 5 of 9'
            in log(tmp_path))
    assert 'the same command resumes from it' in log(tmp_path)
    # told again while it ends, it still ends with that status
    os.kill(os.getpid(), signal.SIGTERM)
    assert run(9).iter == 9
    assert names(tmp_path) == ['iter_5.pth', 'iter_9.pth']


def test_a_closed_terminal_ends_with_a_checkpoint(tmp_path):
    """As a closed SSH session: SIGHUP, and nothing can be printed."""
    def slow(runner):
        time.sleep(0.05)

    pid, terminal = os.forkpty()
    if pid == 0:
        status = 1
        try:
            os.environ['TERM'] = 'xterm'
            sys.stdout = open(1, 'w')  # noqa: SIM115
            sys.stderr = open(2, 'w', buffering=1)  # noqa: SIM115
            tiny_runner(
                tmp_path, iters=200, num_workers=1,
                checkpoint=dict(interval=1000), hooks=[
                    AtIteration(n, slow) for n in range(1, 200)]).train()
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    shown = b''
    while b'(train) [1][5/4]' not in shown:
        shown += os.read(terminal, 4096)
    assert b'training' in shown  # the bar
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    saved, = names(tmp_path)
    assert 5 <= int(saved[5:-4]) < 200
    assert 'SIGHUP: stopped after iteration' in log(tmp_path)


def test_nohup_is_respected(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    tiny_runner(tmp_path, iters=4, hooks=[
        AtIteration(2, tell(signal.SIGHUP))]).train()
    assert 'iter_4.pth' in names(tmp_path)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(runner):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny_runner(tmp_path, iters=9, checkpoint=dict(interval=100),
                    hooks=[AtIteration(5, twice)]).train()
    assert names(tmp_path) == []
    # training has ended: Ctrl-C is again what it was
    assert signal.getsignal(signal.SIGINT) is before


def test_it_stops_between_optimizer_steps(tmp_path):
    with pytest.raises(TrainingStopped):
        tiny_runner(tmp_path, iters=20, accumulate=4,
                    checkpoint=dict(interval=100),
                    hooks=[AtIteration(5, tell(signal.SIGTERM))]).train()
    assert names(tmp_path) == ['iter_8.pth']


def test_a_stop_within_an_epoch_is_found_and_removed_again(tmp_path):
    def run(*hooks):
        runner = tiny_runner(
            tmp_path, epochs=3, checkpoint=dict(max_keep_ckpts=1),
            hooks=hooks)
        runner.train()
        return runner

    with pytest.raises(TrainingStopped):
        run(AtIteration(6, tell(signal.SIGTERM)))
    assert names(tmp_path) == ['epoch_1_iter_6.pth']
    # the end of an epoch is saved as that
    with pytest.raises(TrainingStopped):
        run(AtIteration(8, tell(signal.SIGTERM)))
    assert names(tmp_path) == ['epoch_2.pth']
    assert 'Resuming from' in log(tmp_path)
    assert run().epoch == 3
    assert names(tmp_path) == ['epoch_3.pth']


class Evaluations(BaseMetric):
    """Counts how often it was asked."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        type(self).count += 1
        return dict(acc=float(self.count))


def test_pending_validation_is_run_after_resuming(tmp_path):
    class DuringValidation(Hook):

        def before_val_epoch(self, runner):
            if runner.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(*hooks):
        Evaluations.count = 0
        runner = tiny_runner(
            tmp_path, epochs=3, hooks=hooks,
            checkpoint=dict(max_keep_ckpts=1, save_best='acc',
                            rule='greater'),
            val_dataloader=dict(
                batch_size=8, num_workers=0, dataset=Numbers(),
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False)),
            val_cfg=dict(), val_evaluator=Evaluator(Evaluations()))
        runner.train()

    with pytest.raises(TrainingStopped):
        run(AtIteration(4, tell(signal.SIGTERM)))
    assert Evaluations.count == 0 and names(tmp_path) == ['epoch_1.pth']
    with pytest.raises(TrainingStopped):
        run(DuringValidation())
    # that of epoch 1, and that of epoch 2, which was finished
    assert Evaluations.count == 2
    assert names(tmp_path) == ['best_acc_epoch_2.pth', 'epoch_2.pth']
    run()
    assert Evaluations.count == 1
    assert names(tmp_path)[-1] == 'epoch_3.pth'


def test_ranks_stop_after_the_same_step(tmp_path):
    """Rank 1 alone is told."""
    def rank(number):
        hooks = [AtIteration(5, tell(signal.SIGTERM))] if number == 1 else []
        runner = tiny_runner(
            tmp_path / 'run', iters=30, hooks=hooks,
            checkpoint=dict(interval=100), launcher='pytorch',
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None))
        try:
            runner.train()
        finally:
            (tmp_path / f'end_{number}').write_text(str(runner.iter + 1))

    assert on_ranks(rank, tmp_path) == [75, 75]
    ends = [int((tmp_path / f'end_{n}').read_text()) for n in range(2)]
    # all know it a step later
    assert ends == [6, 6] and names(tmp_path / 'run') == ['iter_6.pth']


def test_workers_end_with_the_main_process(tmp_path):
    """Slurm and terminals signal workers as well."""
    def run():
        os.setsid()
        group = os.getpgrp()

        def tell_all(runner):
            # by another process, as it is
            for _ in range(2):
                subprocess.run(['/bin/kill', '-TERM', '--', f'-{group}'],
                               start_new_session=True)

        # the step after needs what workers load
        tiny_runner(tmp_path, iters=60, num_workers=2, accumulate=20,
                    checkpoint=dict(interval=100),
                    hooks=[AtIteration(21, tell_all)]).train()

    pid = start_fork(run)
    assert end_fork(pid) == 75
    assert names(tmp_path) == ['iter_40.pth']
    # none is left behind
    for _ in range(100):
        left = [p for p in Path('/proc').glob('[0-9]*')
                if _group(p) == pid]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def _group(process):
    try:
        status = (process / 'stat').read_text().rpartition(')')[2].split()
    except OSError:
        return None
    return int(status[2]) if status[0] != 'Z' else None


QUICK = 'configs/quickstart/cmae_vit-mini_tiles.py'
SMALL = [
    '--resume', '--cfg-options', 'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=1', 'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=999'
]


def run_until(command, seen, act, env):
    """Run a command, act when its output shows something; give its end."""
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=ROOT,
        env={
            **os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
            'PATH': os.pathsep.join(
                [os.path.dirname(sys.executable), os.environ['PATH']]),
            **env
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True)
    # so that a failure ends
    limit = threading.Timer(
        400, os.killpg, args=(process.pid, signal.SIGKILL))
    limit.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if seen is not None and seen in line:
            act(process)
            seen = None
    limit.cancel()
    return process.wait(), ''.join(lines)


def terminate(process):
    process.terminate()


def steps_of(folder):
    return [int(n[5:-4]) for n in names(folder)]


def test_the_command_stops(image_root, tmp_path):
    command = [sys.executable, 'tools/train.py', QUICK, '--work-dir',
               tmp_path, *SMALL]
    env = dict(DATA_ROOT=str(image_root))
    status, out = run_until(command + ['train_cfg.max_iters=99999'],
                            ' 3/99999]', lambda p: os.killpg(
                                p.pid, signal.SIGINT), env)
    assert status == 130, out[-3000:]
    assert 'Traceback' not in out and 'SIGINT: stopped after' in out
    (step, ) = steps_of(tmp_path)
    assert step >= 3


def test_the_distributed_command_gives_the_status_on(image_root, tmp_path):
    status, out = run_until(
        ['bash', 'tools/dist_train.sh', QUICK, 2, '--work-dir', tmp_path,
         *SMALL, 'train_cfg.max_iters=99999'], ' 3/99999]', terminate,
        dict(DATA_ROOT=str(image_root), PORT=str(free_port()),
             **note_threads(tmp_path)))
    assert status == 75, out[-3000:]
    check_threads(tmp_path)
    assert 'SIGTERM: stopped after iteration' in out
    assert len(steps_of(tmp_path)) == 1


SRUN = '''#!/usr/bin/env bash
# Starts ranks as srun does, and hands SIGTERM on to them.
while [ "$1" != python ]; do
    case $1 in --ntasks=*) export SLURM_NTASKS=${1#*=} ;; esac
    shift
done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODELIST=localhost "$@" &
    ranks+=($!)
done
trap 'kill -TERM "${ranks[@]}" 2>/dev/null; told=1' TERM
worst=0
for rank in "${ranks[@]}"; do
    while :; do
        told=
        wait "$rank"
        status=$?
        [ -n "$told" ] || break
    done
    [ "$status" -le "$worst" ] || worst=$status
done
exit "$worst"
'''
SCONTROL = '''#!/usr/bin/env bash
echo "$@" >>"$CALLS"
[ "$1" != show ] || echo localhost
'''


def test_slurm_requeues_preempted_jobs(image_root, tmp_path):
    """By SIGTERM, then by the warning before a time limit, in the job that
    goes on. That it resumes exactly is tested in test_exact_resume.py."""
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    calls, work = tmp_path / 'calls', tmp_path / 'work'
    env = dict(
        DATA_ROOT=str(image_root), MASTER_PORT=str(free_port()),
        CALLS=str(calls), GPUS='2', SLURM_JOB_ID='4711',
        PATH=os.pathsep.join([str(tmp_path), os.path.dirname(sys.executable),
                              os.environ['PATH']]))

    # --no-resume must have no effect in a requeued job.
    command = ['bash', 'tools/slurm_train.sh', 'gpu', 'cmae', QUICK,
               '--work-dir', work, '--no-resume', *SMALL[1:],
               'param_scheduler=[]', 'train_cfg.max_iters=99999']

    def warn(process):
        process.send_signal(signal.SIGUSR1)

    steps = []
    for restarts, act in enumerate((terminate, warn)):
        seen = f' {(steps or [1])[-1] + 2}/99999]'
        status, out = run_until(
            command, seen, act,
            {**env, 'SLURM_RESTART_COUNT': str(restarts)})
        assert status == 75, out[-3000:]
        asked = calls.read_text().splitlines()
        assert asked.count('requeue 4711') == restarts + 1
        steps += steps_of(work)
        assert ('Resuming from' in log(work)) == (restarts > 0)
    assert 3 <= steps[0] <= steps[1] - 2


def test_a_default_hook_that_is_listed_as_custom_is_built_once(tmp_path):
    runner = tiny_runner(tmp_path, iters=2, hooks=[
        dict(type='mmpretrain.PreemptionHook')])
    kinds = [type(hook).__name__ for hook in runner.hooks]
    assert kinds.count('PreemptionHook') == kinds.count('StepSeedHook') == 1
