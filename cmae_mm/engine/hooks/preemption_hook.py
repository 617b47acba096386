"""Save and stop after a signal."""
import signal
from typing import Optional

import torch
import torch.distributed as torch_dist
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS

from ..device import group_timeout
from ..stop_signals import EXIT_STATUS, StopSignals, TrainingStopped
from ..training_state import (
    at_optimizer_step,
    note_pending_validation,
    validation_follows,
    validation_pending,
)
from .checkpoint_hook import AtomicCheckpointHook


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Stop on SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C with a checkpoint.

    ``ResumableRunner`` registers it by itself. After a signal to any rank all
    ranks finish the same optimizer step, rank 0 saves, and the process ends:
    with status 130 after Ctrl-C and 75 after the others, on which
    ``tools/slurm_train.sh`` requeues. A second Ctrl-C stops at once. A signal
    during validation takes effect after it; a validation that was due after
    the last step is run when the run is resumed.

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
        """Prepare the ranks' agreement; validate what was stopped before."""
        self._training, self._agreed, self._vote = True, 0, None
        if get_world_size() > 1 and self._group is None:
            # On CPUs, so that no rank waits for its accelerator.
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

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Stop after this iteration, if a rank has been asked to."""
        self._ask()
        # The end of an epoch is more than that of an iteration.
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
        """Stop after this epoch, if a rank has been asked to."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._ask(wait=True)
            done = runner.epoch + 1
            self._stop_if_agreed(runner, done, runner.iter,
                                 validation_follows(runner, done))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Stop after validation, if a rank has been asked to."""
        if self._training and at_optimizer_step(runner):
            self._ask(wait=True)
            self._stop_if_agreed(runner, runner.epoch, runner.iter, False)

    def _ask(self, wait: bool = False) -> None:
        """Learn what any rank has been told, at the latest a step later.

        Args:
            wait (bool): Whether to wait for this step's answer instead of
                taking the last step's. Defaults to False.
        """
        if self._agreed:
            return
        if self._group is None:
            self._agreed = self.signals.received
            return
        last = self._vote
        told = torch.tensor([self.signals.received], dtype=torch.int64)
        self._vote = told, torch_dist.all_reduce(
            told, torch_dist.ReduceOp.MAX, group=self._group, async_op=True)
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
            return  # the end is here anyway
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
                f'{runner.max_iters}, saved in {saved}; {how} goes on from '
                'there.')
        self._end_agreement()
        raise TrainingStopped(EXIT_STATUS[self._agreed])

    def _end_agreement(self) -> None:
        """Await the last answer and end the threads that brought it.

        A thread that still lets go of a tensor while the interpreter ends
        aborts the process.
        """
        if self._vote is not None:
            self._vote[1].wait()
            self._vote = None
        if self._group is not None:
            torch_dist.destroy_process_group(self._group)
            self._group = None
