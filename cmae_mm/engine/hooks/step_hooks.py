"""Hooks around each training step: seeds, batches, progress."""
from typing import Any, Iterator, Optional

import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS
from torch.utils.data import DataLoader

from ...datasets.samplers import mix, seed_generators
from ...progress import Progress
from ..device import unwrapped_model


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed all generators of the process before each iteration.

    Masks, dropout, drop path, mixup and all other draws of an iteration then
    follow from the run's seed, the rank and the iteration: ranks draw
    differently, and a resumed run draws the same as an uninterrupted one,
    whatever validation or other hooks draw in between. Initial weights and
    samplers, which must be equal on all ranks, are drawn before the first
    iteration, from ``randomness.seed``.
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
        """Note the batch, one of several if gradients accumulate."""
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
    """Show the progress of a training and the time left on a terminal.

    Nothing is shown if standard error is not a terminal.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._progress: Optional[Progress] = None

    def before_train(self, runner) -> None:
        """Show the bar, starting from the iterations done before."""
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
        """Release the terminal, however training has ended."""
        if self._progress is not None:
            self._progress.close()


class DevicePrefetcher:
    """A data loader that copies the next batch during a step.

    The copy is queued on its own stream before the step on the previous batch.
    It takes no time if batches are pinned.

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
                    # Keep its memory until this step has read it.
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
