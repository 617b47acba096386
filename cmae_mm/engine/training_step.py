"""Training steps on random images to measure speed and memory."""
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..image_size import to_pair
from .hooks.step_hooks import TargetUpdateHook
from .model_options import checkpoint_activations

_NO_END = 1 << 30
MOST = 1 << 16
_WARM_UP, _TIMED = 2, 2


def preprocessor_of(cfg: Config) -> dict:
    """Return the settings of a config's data preprocessor."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor


def fake_batch(cfg: Config, batch_size: int, device: torch.device) -> dict:
    """Create a batch of random images with the sizes of a config.

    Args:
        cfg (Config): The config of a pre-training.
        batch_size (int): Number of images.
        device (torch.device): The device of the images.

    Returns:
        dict: ``inputs``, canvases or two views, and ``data_samples``.
    """
    settings = preprocessor_of(cfg)
    size = to_pair(cfg.model.backbone.get('img_size', 224))
    channels = len(settings.get('mean') or (0, 0, 0))
    dtype = settings.get('dtype', 'uint8')

    def images(size: Sequence[int]) -> Tensor:
        # Smooth like photographs, which affects the time of augmentations.
        coarse = torch.rand(batch_size, channels, 8, 8)
        fine = nn.functional.interpolate(coarse, size, mode='bicubic')
        scaled = (fine.clamp_(0, 1) * 255).numpy().astype(dtype)
        return torch.from_numpy(scaled).to(device)

    if settings['type'].endswith('TwoViewDataPreprocessor'):
        shift = settings.get('max_shift', 32)
        return dict(inputs=images([
            side + shift for side in to_pair(settings['size'])]),
            data_samples=None)
    return dict(inputs=[images(size), images(size)], data_samples=None)


class TrainingStep:
    """A model, its optimizer wrapper and a batch.

    Args:
        model (nn.Module): The model, on its device.
        wrapper (OptimWrapper): Its optimizer wrapper.
        batch (dict, optional): The batch of each step. Defaults to None; it
            must be set before the first call.
    """

    def __init__(self,
                 model: nn.Module,
                 wrapper: Any,
                 batch: dict | None = None) -> None:
        self.model, self.wrapper, self.batch = model, wrapper, batch
        wrapper.initialize_count_status(model, 0, _NO_END)

    def __call__(self) -> dict[str, Tensor]:
        """Train on the batch once, including the update of the target."""
        return self.model.train_step(self.batch, self.wrapper)


def build_training_step(
        cfg: Config,
        device: torch.device,
        optim_wrapper: dict | None = None,
        activation_checkpointing: Any = None) -> TrainingStep:
    """Build a config's model and optimizer, as for training.

    Args:
        cfg (Config): The config of a pre-training.
        device (torch.device): The device of the model.
        optim_wrapper (dict, optional): Its optimizer wrapper. Defaults to
            None, the config's.
        activation_checkpointing (bool | str | List[str], optional): See
            :func:`checkpoint_activations`. Defaults to None, off.

    Returns:
        TrainingStep: Without a batch.
    """
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=preprocessor_of(cfg)))
    model.init_weights()
    model = revert_sync_batchnorm(model).to(device).train()
    wrapper = build_optim_wrapper(
        model, cfg.optim_wrapper if optim_wrapper is None else optim_wrapper)
    if model.target is not None and not model.target.fixed:
        TargetUpdateHook().attach(model, wrapper.optimizer, _NO_END)
    if activation_checkpointing:
        checkpoint_activations(model, activation_checkpointing)
    return TrainingStep(model, wrapper)


def largest_batch(fits: Callable[[int], bool], start: int) -> int:
    """Double a batch size while it fits, or halve it until it fits.

    Args:
        fits (Callable): Tries a batch size.
        start (int): The first batch size.

    Returns:
        int: The largest tested size that fits; 0 if two images, the minimum
        for the contrastive loss, do not fit.
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
    """Training steps on random images on the current GPU.

    Args:
        cfg (Config): The config of a pre-training.
        limit (float): GiB that torch may allocate.
    """

    def __init__(self, cfg: Config, limit: float) -> None:
        self.cfg = cfg
        self.step: TrainingStep | None = None
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
            # Free the gradients of the failed step.
            self.step = None
            return False
        finally:
            if self.step is not None:
                self.step.batch = None
            gc.collect()
            torch.cuda.empty_cache()


def build_trial_step(cfg: Config, device: torch.device) -> TrainingStep:
    """Build a step with the memory use of training."""
    wrapper = dict(cfg.optim_wrapper)
    # Two batches are enough: gradients are kept from the first to the second.
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
