"""A training of a small linear model, for tests of runs and their files."""
import faulthandler
import os
import signal
import time
import traceback
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch.utils.data import Dataset

from cmae_mm.engine import AtomicCheckpointHook, ResumableRunner


class Numbers(Dataset):
    """Images of a few numbers; ``metainfo`` as mmengine's data sets have."""

    metainfo = dict(name='numbers')

    def __init__(self, size: int = 16, features: int = 8) -> None:
        self.data = torch.randn(
            size, features, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return dict(inputs=self.data[index])


class Linear(BaseModel):
    """Learns to give the sum of its inputs; ``width`` makes files large."""

    def __init__(self, features: int = 8, width: int = 1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(features, width)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = inputs if torch.is_tensor(inputs) else torch.stack(inputs)
        error = self.layer(inputs).mean(1) - inputs.sum(1)
        if mode == 'loss':
            return dict(loss=error.square().mean())
        return list(error)


class AtIteration(Hook):
    """Does something after an iteration, counted from 1."""

    priority = 'HIGHEST'

    def __init__(self, iteration: int, action) -> None:
        self.iteration, self.action = iteration, action

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.iteration:
            self.action(runner)


def tiny_runner(work_dir, iters=None, epochs=None, checkpoint=None, hooks=(),
                width=1, batch_size=4, accumulate=1, runner=ResumableRunner,
                **settings):
    """Build a runner of 16 samples, by iterations or by epochs of 4."""
    by_epoch = epochs is not None
    loop = (dict(type='EpochBasedTrainLoop', max_epochs=epochs) if by_epoch
            else dict(type='IterBasedTrainLoop', max_iters=iters))
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    saving = dict(
        type='AtomicCheckpointHook', interval=1, by_epoch=by_epoch)
    saving.update(checkpoint or {})
    cfg = dict(
        work_dir=str(work_dir),
        default_scope='mmpretrain',
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=settings.pop('num_workers', 0),
            sampler=dict(type=sampler, shuffle=True),
            collate_fn=dict(type='default_collate'),
            dataset=Numbers()),
        train_cfg=loop,
        optim_wrapper=dict(
            type='OptimWrapper',
            accumulative_counts=accumulate,
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=saving),
        custom_hooks=list(hooks),
        resume=True,
        randomness=dict(seed=0),
        experiment_name=f'tiny_{os.getpid()}_{time.monotonic_ns()}')
    cfg.update(settings)
    extra = {k: cfg.pop(k) for k in list(cfg)
             if k in ('resume_from', 'model_wrapper_cfg')}
    extra.update((k, cfg[k]) for k in (
        'resume', 'auto_scale_lr', 'param_scheduler') if k in cfg)
    return runner(
        model=Linear(width=width), cfg=Config(extra), **cfg)


def start_fork(action) -> int:
    """Run something in a forked process; gives its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        # A deadlock of ranks fails with their stacks.
        faulthandler.dump_traceback_later(290, file=2)
        signal.alarm(300)
        try:
            # pytest holds back what is printed, of the child too
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            action()
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return pid


def end_fork(pid: int) -> int:
    """Give a forked process's exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def on_ranks(action, folder, count=2, limit=None):
    """Run something on forked ranks that talk through gloo.

    Args:
        action (Callable): Called with the rank.
        folder (Path): Where they find each other.
        count (int): Of ranks.
        limit (int): Seconds after the end of rank 0 at which the others are
            killed. Defaults to None, they may take their time.

    Returns:
        list[int]: Their exit statuses.
    """
    def rank(number):
        os.environ['LOCAL_RANK'] = str(number)
        dist.init_process_group(
            'gloo', init_method=f'file://{folder}/store', rank=number,
            world_size=count)
        action(number)

    (folder / 'store').unlink(missing_ok=True)
    pids = [start_fork(partial(rank, number)) for number in range(count)]
    statuses = [end_fork(pids[0])]
    for pid in pids[1:]:
        if limit is not None:
            for _ in range(10 * limit):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG
                             | os.WNOWAIT) is not None:
                    break
                time.sleep(0.1)
            else:
                os.kill(pid, signal.SIGKILL)
        statuses.append(end_fork(pid))
    return statuses


def names(folder, pattern='*.pth*'):
    return sorted(
        p.name for p in Path(folder).glob(pattern)
        if pattern[0] == '.' or p.name[0] != '.')


def content(path):
    return torch.load(path, weights_only=False)


def log(folder):
    """All that runs in a folder have logged."""
    return '\n'.join(p.read_text() for p in Path(folder).glob('*/*.log'))


class Score(Hook):
    """Stands in for an evaluator: better with each iteration."""

    priority = 'LOW'

    def after_train_iter(self, runner, *args, **kwargs):
        hook = runner._hook(AtomicCheckpointHook)
        runner.train_loop._iter += 1  # validation is after the iteration
        hook.after_val_epoch(runner, dict(acc=float(runner.iter)))
        runner.train_loop._iter -= 1
