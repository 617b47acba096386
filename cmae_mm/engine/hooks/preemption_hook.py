"""Signals that stop training after the current step."""
import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional

import torch
import torch.distributed as torch_dist
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS
from torch.utils.data import DataLoader

from ..device import group_timeout
from ..loops import (
    at_optimizer_step,
    note_pending_validation,
    validation_follows,
    validation_pending,
)
from .checkpoint_hook import AtomicCheckpointHook

# Exit statuses: EX_TEMPFAIL of sysexits.h, for schedulers to requeue, and the
# shell's status of Ctrl-C.
EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGUSR1: 75,
               signal.SIGINT: 130}


class TrainingStopped(SystemExit):
    """Training was stopped by a signal.

    Args:
        status (int): Exit status of the process.
    """


class StopSignals:
    """Records SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C.

    A second Ctrl-C stops immediately. If SIGHUP is ignored, as under
    ``nohup``, it stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals until training has ended or failed.

        The handlers stay after ``TrainingStopped``: a repeated signal of a
        launcher must not change the exit status.
        """
        self.received = 0
        before: Dict[int, Any] = {}
        # Python handles signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number)
                      for number in EXIT_STATUS}
            if before[signal.SIGHUP] is signal.SIG_IGN:
                del before[signal.SIGHUP]
            for number in before:
                signal.signal(number, self._note)
        stopped = False
        try:
            yield
        except TrainingStopped:
            stopped = True
            raise
        finally:
            if not stopped:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                raise KeyboardInterrupt
            # The log may be in use at this moment.
            os.write(2, b'\nStopping after this step; press Ctrl-C again to '
                     b'stop now.\n')
        self.received = max(self.received, number)


def shield_workers(loader: DataLoader) -> None:
    """Make the workers of a loader ignore signals.

    A terminal and Slurm send signals to all processes, but the main process
    needs its workers to finish the step.

    Args:
        loader (DataLoader): The data loader, modified in place before its
            workers start.
    """
    inner = loader.worker_init_fn
    if loader.num_workers > 0 and (
            getattr(inner, 'func', None) is not _init_worker):
        loader.worker_init_fn = partial(_init_worker, inner)


def _init_worker(inner: Optional[Callable], worker_id: int) -> None:
    for number in EXIT_STATUS.keys() - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        # Blocked in this and all later threads; one thread waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(
            target=_await_sigterm, args=(os.getppid(), ), daemon=True).start()
    if inner is not None:
        inner(worker_id)


def _await_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Stop on SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C with a checkpoint.

    A default hook of ``ResumableRunner``. After a signal to any rank, all
    ranks finish the same optimizer step, rank 0 saves a checkpoint, and the
    processes exit with status 130 (Ctrl-C) or 75 (other signals), for which
    ``tools/slurm_train.sh`` requeues. A second Ctrl-C stops immediately. A
    signal during validation takes effect after it. A validation due after the
    last step runs after resuming.

    Raises:
        TrainingStopped: With that status.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.signals = StopSignals()
        self._training = False
        self._agreed = 0
        self._group = None
        self._vote = None

    def before_train(self, runner) -> None:
        """Create the group of ranks; run a pending validation."""
        self._training, self._agreed, self._vote = True, 0, None
        if get_world_size() > 1 and self._group is None:
            # On CPUs, to avoid a synchronisation with the accelerator.
            self._group = torch_dist.new_group(
                backend='gloo', **group_timeout(runner.cfg))
        if validation_pending(runner):
            note_pending_validation(runner, False)
            if runner.val_loop is not None:
                runner.val_loop.run()

    def after_train(self, runner) -> None:
        """Stop listening."""
        self._training = False
        self._end_agreement()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Stop after this iteration if any rank has received a signal."""
        self._agree()
        # After the last iteration of an epoch, after_train_epoch stops.
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and self.end_of_epoch(runner.train_dataloader, batch_idx):
            return
        done = runner.iter + 1
        self._stop_if_agreed(
            runner,
            runner.epoch,
            done,
            not by_epoch and validation_follows(runner, done),
            within_epoch=True)

    def after_train_epoch(self, runner) -> None:
        """Stop after this epoch if any rank has received a signal."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._agree(wait=True)
            done = runner.epoch + 1
            self._stop_if_agreed(runner, done, runner.iter,
                                 validation_follows(runner, done))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Stop after validation if any rank has received a signal."""
        if self._training and at_optimizer_step(runner):
            self._agree(wait=True)
            self._stop_if_agreed(runner, runner.epoch, runner.iter, False)

    def _agree(self, wait: bool = False) -> None:
        """Reduce the signals of all ranks to the highest, one step later.

        Args:
            wait (bool): Whether to wait for this step's vote instead of using
                the last step's. Defaults to False.
        """
        if self._agreed:
            return
        if self._group is None:
            self._agreed = self.signals.received
            return
        last = self._vote
        received = torch.tensor([self.signals.received], dtype=torch.int64)
        self._vote = received, torch_dist.all_reduce(
            received, torch_dist.ReduceOp.MAX, group=self._group,
            async_op=True)
        for vote in (last, self._vote if wait else None):
            if vote is not None:
                vote[1].wait()
                self._agreed = max(self._agreed, int(vote[0]))

    def _stop_if_agreed(self,
                        runner,
                        epoch: int,
                        iteration: int,
                        validation_next: bool,
                        within_epoch: bool = False) -> None:
        if not self._agreed or not at_optimizer_step(runner):
            return
        if iteration >= runner.max_iters and not validation_next:
            return  # training ends anyway
        hook = next(
            (h for h in runner.hooks if isinstance(h, AtomicCheckpointHook)),
            None)
        saved = None
        if hook is not None:
            note_pending_validation(runner, validation_next)
            saved = hook.save_now(runner, epoch, iteration, within_epoch)
        name = signal.Signals(self._agreed).name
        if saved is None:
            runner.logger.warning(f'{name}: stopped after iteration '
                                  f'{iteration} of {runner.max_iters}, '
                                  'without a checkpoint of it.')
        else:
            how = ('the same command' if runner.cfg.get('resume')
                   and not runner.cfg.get('resume_from') else
                   'the same command with --resume')
            runner.logger.info(
                f'{name}: stopped after iteration {iteration} of '
                f'{runner.max_iters}, saved in {saved}; {how} resumes from '
                'it.')
        self._end_agreement()
        raise TrainingStopped(EXIT_STATUS[signal.Signals(self._agreed)])

    def _end_agreement(self) -> None:
        """Await the last vote and end the threads of its process group.

        A thread that frees a tensor during interpreter shutdown aborts the
        process.
        """
        if self._vote is not None:
            self._vote[1].wait()
            self._vote = None
        if self._group is not None:
            torch_dist.destroy_process_group(self._group)
            self._group = None
