"""Hooks of each step: seeds, prefetching, progress, target, signals."""
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as torch_dist
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from ...datasets.samplers import mix_seeds, seed_generators
from ...models import CMAE
from ...models.utils import check_momentum
from ...progress import Progress
from ..device import group_timeout, unwrapped_model
from ..loops import (at_optimizer_step, set_validation_pending,
                     validation_follows, validation_pending)
from .checkpoint_hook import AtomicCheckpointHook


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed all generators of the process before each iteration.

    Masks, dropout, drop path, mixup and all other random numbers of an
    iteration then depend only on the run's seed, the rank and the iteration. A
    resumed run repeats those of an uninterrupted run, regardless of validation
    and other hooks. Initial weights and samplers, which must be equal on all
    ranks, are drawn from ``randomness.seed`` before the first iteration.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Seed ``random``, numpy, and torch on the CPU and all devices."""
        seed = mix_seeds(runner.seed, get_rank(), runner.iter)
        seed_generators(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class SkippedStepHook(Hook):
    """Record the images of a step for warnings of skipped steps.

    See ``AutoAmpOptimWrapper``, which skips and counts them.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Record the batch, one of several with gradient accumulation."""
        guard = getattr(runner.optim_wrapper, 'guard', None)
        if guard is None:
            return
        if runner.optim_wrapper.begins_step():
            guard.samples = []
        samples = data_batch.get('data_samples') if isinstance(
            data_batch, dict) else None
        if isinstance(samples, (list, tuple)):
            guard.samples.extend(samples)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show progress and remaining time of a training on a terminal.

    Nothing is shown if standard error is not a terminal.
    """

    priority = 'LOW'
    _progress: Progress | None = None

    def before_train(self, runner) -> None:
        """Show the bar, starting at the current iteration."""
        self._progress = Progress(
            runner.max_iters, 'training', 'step', runner.iter,
            enabled=is_main_process(), plain=False)
        self._progress.show_logs_above(runner.logger.handlers)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Count a step."""
        if self._progress is not None:
            self._progress.update()

    def after_train(self, runner) -> None:
        """Release the terminal."""
        self.close()

    def close(self) -> None:
        """Release the terminal, also after an error."""
        if self._progress is not None:
            self._progress.close()


class DevicePrefetcher:
    """A data loader that copies the next batch during a step.

    The copy is queued on a separate stream before the step on the previous
    batch. With pinned batches it takes no extra time.

    Args:
        loader (DataLoader): The data loader of dicts with tensors.
        device (torch.device): The device to copy to.
    """

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        if device.type == 'cuda':
            self.stream = torch.cuda.Stream(device)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader."""
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        waiting = None
        for batch in self.loader:
            copied = self._copy(batch)
            if waiting is not None:
                yield self._ready(waiting)
            waiting = copied
        if waiting is not None:
            yield self._ready(waiting)

    def _copy(self, batch: dict) -> dict:
        with torch.cuda.stream(self.stream):  # does nothing without a stream
            return {
                k: v.to(self.device, non_blocking=True)
                if isinstance(v, torch.Tensor) else v
                for k, v in batch.items()
            }

    def _ready(self, batch: dict) -> dict:
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    # Keep the memory until this step has used it.
                    value.record_stream(current)
        return batch


@HOOKS.register_module()
class PrefetchHook(Hook):
    """Prefetch batches to the GPU in epoch-based training.

    Without a GPU it does nothing.
    """

    def before_train(self, runner) -> None:
        """Wrap the training's data loader."""
        device = next(unwrapped_model(runner).parameters()).device
        loop = runner.train_loop
        if device.type == 'cuda' and isinstance(loop, EpochBasedTrainLoop):
            loop.dataloader = DevicePrefetcher(loop.dataloader, device)


@HOOKS.register_module()
class TargetUpdateHook(Hook):
    r"""Update CMAE's target by an EMA step after each optimizer step.

    .. math::
        \theta_t \leftarrow \mu\,\theta_t + (1 - \mu)\,\theta_s

    A resumed run continues the cosine schedule; a new run from loaded weights
    restarts it.

    The update is a hook of the optimizer, see ``MomentumTarget.follow``. It is
    skipped while gradients accumulate and if the loss scaler skips a step.
    With ``head.contrastive=None`` (MAE) or ``target.fixed=True`` the hook does
    nothing and logs it.

    Args:
        momentum (float, optional): Momentum mu, the weight of the old target
            in an update, in (0, 1). Defaults to None, the model's (0.996).
        end_momentum (float, optional): End of a cosine schedule of mu over
            the training's optimizer steps, in (0, 1]. Defaults to None, a
            constant mu.

    Raises:
        ValueError: If a momentum is out of range, or, before training, if the
            model is not a CMAE.
    """

    def __init__(self,
                 momentum: float | None = None,
                 end_momentum: float | None = None) -> None:
        if momentum is not None:
            check_momentum(momentum)
        if end_momentum is not None and not 0 < end_momentum <= 1:
            raise ValueError('end_momentum must be above 0 and at most 1, but '
                             f'got {end_momentum}')
        self.momentum = momentum
        self.end_momentum = end_momentum
        self._handle: RemovableHandle | None = None

    def before_train(self, runner) -> None:
        """Register the update with the optimizer."""
        model = unwrapped_model(runner)
        if not isinstance(model, CMAE):
            raise ValueError(
                'TargetUpdateHook updates the target of a CMAE, but '
                f'{type(model).__name__} has no target; remove the hook')
        if model.target is None or model.target.fixed:
            runner.logger.info(
                'TargetUpdateHook does nothing: ' +
                ('this is an MAE, which has no target'
                 if model.target is None else 'model.target.fixed=True'))
            return
        if runner.iter == 0:
            # Not the count of the checkpoint of load_from.
            model.target.steps.zero_()
        optim_wrapper = runner.optim_wrapper
        accumulate = optim_wrapper._accumulative_counts
        self.attach(
            model,
            optim_wrapper.optimizer,
            num_steps=math.ceil(runner.max_iters / accumulate))

    def after_train(self, runner) -> None:
        """Remove the update."""
        self.detach()

    def attach(self, model: CMAE, optimizer: Optimizer,
               num_steps: int) -> None:
        """Register the update of a model's target with an optimizer.

        The cosine schedule starts at the target's count of steps.

        Args:
            model (CMAE): A model with a target.
            optimizer (Optimizer): The optimizer that trains it.
            num_steps (int): Number of optimizer steps of the whole training,
                the length of the cosine.
        """
        target: Any = model.target
        start = target.momentum if self.momentum is None else self.momentum
        self._handle = target.follow(
            optimizer, model.backbone, model.neck.projector,
            lambda step: self._momentum_at(start, step, num_steps))

    def detach(self) -> None:
        """Remove the update."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _momentum_at(self, start: float, step: int, num_steps: int) -> float:
        """Return mu at an optimizer step, counted from 0."""
        if self.end_momentum is None:
            return start
        progress = min(step / max(num_steps - 1, 1), 1.)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.end_momentum - (self.end_momentum - start) * cosine


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

    received = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals until training has ended or failed.

        The handlers stay after ``TrainingStopped``: a repeated signal of a
        launcher must not change the exit status.
        """
        self.received = 0
        before: dict[int, Any] = {}
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


def ignore_signals_in_workers(loader: DataLoader) -> None:
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


def _init_worker(inner: Callable | None, worker_id: int) -> None:
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
        self._signal = 0
        self._group = None
        self._pending_reduce = None

    def before_train(self, runner) -> None:
        """Create the group of ranks; run a pending validation."""
        self._training, self._signal, self._pending_reduce = True, 0, None
        if get_world_size() > 1 and self._group is None:
            # On CPUs, to avoid a synchronisation with the accelerator.
            self._group = torch_dist.new_group(
                backend='gloo', **group_timeout(runner.cfg))
        if validation_pending(runner):
            set_validation_pending(runner, False)
            if runner.val_loop is not None:
                runner.val_loop.run()

    def after_train(self, runner) -> None:
        """Stop listening."""
        self._training = False
        self._end_reduce()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Stop after this iteration if any rank has received a signal."""
        self._reduce_signals()
        # After the last iteration of an epoch, after_train_epoch stops.
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and self.end_of_epoch(runner.train_dataloader, batch_idx):
            return
        done = runner.iter + 1
        self._stop_if_signalled(
            runner,
            runner.epoch,
            done,
            not by_epoch and validation_follows(runner, done),
            within_epoch=True)

    def after_train_epoch(self, runner) -> None:
        """Stop after this epoch if any rank has received a signal."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._reduce_signals(wait=True)
            done = runner.epoch + 1
            self._stop_if_signalled(runner, done, runner.iter,
                                    validation_follows(runner, done))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Stop after validation if any rank has received a signal."""
        if self._training and at_optimizer_step(runner):
            self._reduce_signals(wait=True)
            self._stop_if_signalled(runner, runner.epoch, runner.iter, False)

    def _reduce_signals(self, wait: bool = False) -> None:
        """Reduce the signals of all ranks to the highest, one step later.

        Args:
            wait (bool): Whether to wait for this step's vote instead of using
                the last step's. Defaults to False.
        """
        if self._signal:
            return
        if self._group is None:
            self._signal = self.signals.received
            return
        last = self._pending_reduce
        received = torch.tensor([self.signals.received], dtype=torch.int64)
        self._pending_reduce = received, torch_dist.all_reduce(
            received, torch_dist.ReduceOp.MAX, group=self._group,
            async_op=True)
        for vote in (last, self._pending_reduce if wait else None):
            if vote is not None:
                vote[1].wait()
                self._signal = max(self._signal, int(vote[0]))

    def _stop_if_signalled(self,
                           runner,
                           epoch: int,
                           iteration: int,
                           validation_next: bool,
                           within_epoch: bool = False) -> None:
        if not self._signal or not at_optimizer_step(runner):
            return
        if iteration >= runner.max_iters and not validation_next:
            return  # training ends anyway
        hook = next(
            (h for h in runner.hooks if isinstance(h, AtomicCheckpointHook)),
            None)
        saved = None
        if hook is not None:
            set_validation_pending(runner, validation_next)
            saved = hook.save_now(runner, epoch, iteration, within_epoch)
        name = signal.Signals(self._signal).name
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
        self._end_reduce()
        raise TrainingStopped(EXIT_STATUS[signal.Signals(self._signal)])

    def _end_reduce(self) -> None:
        """Await the last vote and end the threads of its process group.

        A thread that frees a tensor during interpreter shutdown aborts the
        process.
        """
        if self._pending_reduce is not None:
            self._pending_reduce[1].wait()
            self._pending_reduce = None
        if self._group is not None:
            torch_dist.destroy_process_group(self._group)
            self._group = None
