"""Hooks of each training step: seeds, prefetching, progress, target."""
import math
from typing import Any, Iterator, Optional

import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from ...datasets.samplers import mix, seed_generators
from ...models import CMAE
from ...models.utils import check_momentum
from ...progress import Progress
from ..device import unwrapped_model


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
        seed = mix(runner.seed, get_rank(), runner.iter)
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

    def __init__(self) -> None:
        self._progress: Optional[Progress] = None

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
        self.stream: Optional[torch.cuda.Stream] = None
        if device.type == 'cuda':
            self.stream = torch.cuda.Stream(device)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader."""
        if name == 'loader':  # not set yet while copied or unpickled
            raise AttributeError(name)
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
                 momentum: Optional[float] = None,
                 end_momentum: Optional[float] = None) -> None:
        if momentum is not None:
            check_momentum(momentum)
        if end_momentum is not None and not 0 < end_momentum <= 1:
            raise ValueError('end_momentum must be above 0 and at most 1, but '
                             f'got {end_momentum}')
        self.momentum = momentum
        self.end_momentum = end_momentum
        self._handle: Optional[RemovableHandle] = None

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
