"""Copies of the next batch to the GPU during a training step."""
from typing import Any, Iterator, Optional

import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS
from torch.utils.data import DataLoader

from ..device import unwrapped_model


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
        if name == 'loader':  # not there yet, while copied or unpickled
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
                    # Its memory must not be reused while this step reads it.
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
