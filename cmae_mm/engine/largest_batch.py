"""Find the largest batch that fits into a GPU's memory."""
import gc
import time
from typing import Callable, Optional

import torch
from mmengine.config import Config

from .training_step import TrainingStep, build_training_step, fake_batch

MOST = 1 << 16
_WARM_UP, _TIMED = 2, 2


def largest_batch(fits: Callable[[int], bool], start: int) -> int:
    """Double a batch size while it fits, or halve it until it fits.

    Args:
        fits (Callable): Tries a batch size.
        start (int): The first batch size.

    Returns:
        int: The largest one that was tried and fits; 0 if not even two images
        fit, which the contrast needs.
    """
    size = max(start, 2)
    if fits(size):
        while 2 * size <= MOST and fits(2 * size):
            size *= 2
        return size
    while size > 2:
        size = max(size // 2, 2)
        if fits(size):
            return size
    return 0


class BatchTrial:
    """Training steps of random images on the current GPU.

    Args:
        cfg (Config): The config of a pre-training.
        limit (float): GiB that torch may allocate.
    """

    def __init__(self, cfg: Config, limit: float) -> None:
        self.cfg = cfg
        self.step: Optional[TrainingStep] = None
        self.peak, self.rate = 0., 0.  # GiB and images/s of the last trial
        self.device = torch.device('cuda', torch.cuda.current_device())
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(
            min(limit * 2**30 / total, 1.), self.device)

    def fits(self, size: int) -> bool:
        """Return whether steps with this batch size fit into memory."""
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            self.step = self.step or build_trial_step(self.cfg, self.device)
            self.rate = time_steps(self.step, self.cfg, size, self.device)
            self.peak = torch.cuda.max_memory_reserved(self.device) / 2**30
            return True
        except torch.cuda.OutOfMemoryError:
            # It may hold gradients and losses of half a step.
            self.step = None
            return False
        finally:
            if self.step is not None:
                self.step.batch = None
            gc.collect()
            torch.cuda.empty_cache()


def build_trial_step(cfg: Config, device: torch.device) -> TrainingStep:
    """Build a step that needs as much memory as those of a training."""
    wrapper = dict(cfg.optim_wrapper)
    # Two batches suffice: gradients are held from the first to the second.
    wrapper['accumulative_counts'] = min(
        wrapper.get('accumulative_counts', 1), 2)
    return build_training_step(
        cfg, device, wrapper, cfg.get('activation_checkpointing'))


def time_steps(step: TrainingStep, cfg: Config, size: int,
               device: torch.device) -> float:
    """Run some steps and return the images/s of the last ones."""
    step.batch = fake_batch(cfg, size, device)
    for number in range(_WARM_UP + _TIMED):
        if number == _WARM_UP:
            torch.cuda.synchronize(device)
            start = time.perf_counter()
        step()
    torch.cuda.synchronize(device)
    return size * _TIMED / (time.perf_counter() - start)
