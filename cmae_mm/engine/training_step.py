"""Measured training steps: time and memory of a run, largest batch."""
import copy
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..dependencies import cpu_count
from ..image_size import to_pair
from .device import host_memory_mb, unwrapped_model
from .hooks.evaluation_hooks import preserve_rng_state
from .hooks.step_hooks import TargetUpdateHook
from .model_options import checkpoint_activations
from .optim_wrapper import NonFiniteError, with_step_guard

# Longest measurement in seconds, and as a share of the run.
_SECONDS, _SHARE = 3., 0.05


def estimate_training(runner: Any) -> str:
    """Estimate time and memory of a training.

    Trains a copy of the model on the first batch. The model, random generators
    and loaders do not change. All processes must call it.

    Args:
        runner (ResumableRunner): Before training.

    Returns:
        str: 'about 60 s at the present speed: 600 steps of 0.08 s; 0.8 GiB of
        memory', '' if training is not epoch-based, or steps do not fit into
        GPU memory or are not finite.
    """
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return ''
    level = runner.logger.level
    runner.logger.setLevel('ERROR')  # training logs it again
    try:
        with preserve_rng_state():
            return _measure(runner)
    except (torch.cuda.OutOfMemoryError, NonFiniteError):
        return ''
    finally:
        runner.logger.setLevel(level)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(runner: Any) -> str:
    loader = runner.train_dataloader
    # Copy transforms, which count skipped files, but not the list of images.
    dataset = copy.copy(loader.dataset)
    if hasattr(dataset, 'pipeline'):
        dataset.pipeline = copy.deepcopy(dataset.pipeline)
    numbers = next(iter(loader.batch_sampler or ()), None) or list(
        itertools.islice(iter(loader.sampler), 1))
    dataset[numbers[0]]  # imports the decoder
    begun = time.perf_counter()
    batch = loader.collate_fn([dataset[number] for number in numbers])
    reading = time.perf_counter() - begun
    source = unwrapped_model(runner)
    model = revert_sync_batchnorm(copy.deepcopy(source)).train()
    wrapper = build_optim_wrapper(
        model, with_step_guard(runner.cfg.optim_wrapper))
    wrapper.message_hub = MessageHub('estimate')  # not in the run's log
    step = TrainingStep(model, wrapper, batch)
    loop = runner.train_loop
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps = len(loader) * loop.max_epochs
    seconds = _time_steps(step, int(steps * _SHARE), on_gpu)
    workers = loader.num_workers
    if on_gpu and workers:
        seconds = max(seconds, reading / workers)
    else:  # workers share the cores with the model
        seconds += reading / max(min(workers, cpu_count()), 1)
    total = seconds * steps
    if runner.val_loop is not None:
        # Validation of an image costs about a third of training on it.
        total += seconds / len(numbers) / 3 * len(
            runner.val_dataloader.dataset) * (
                loop.max_epochs / loop.val_interval)
    memory, kind = host_memory_mb(), 'memory'
    if on_gpu:
        copied = sum(p.numel() * p.element_size() for p in source.parameters())
        memory = (torch.cuda.max_memory_allocated() - copied) / 2**20
        kind = 'GPU memory'
    return (f'about {round_duration(total)} at the present speed: {steps:,} '
            f'steps of {seconds:.2g} s; {memory / 1024:.1f} GiB of {kind}')


def _time_steps(step: Callable[[], Any], most: int, on_gpu: bool) -> float:
    """Return the median time of steps, without the first, slow ones."""

    def timed() -> float:
        begun = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    timed()
    count = [max(min(int(_SECONDS / timed()), most), 1)]
    # Steps contain collectives: all ranks make as many as rank 0.
    broadcast_object_list(count)
    times = [timed() for _ in range(count[0])]
    return statistics.median(times[count[0] // 3:])


def round_duration(seconds: float) -> str:
    """Format a duration that is known to about a fifth.

    Args:
        seconds (float): The time.

    Returns:
        str: One number in one unit, for example '40 min' or '150 min'.
    """
    unit, size = next(
        (unit, size) for unit, size in (
            ('days', 86400), ('h', 3600), ('min', 60), ('s', 1))
        if seconds >= 3 * size or size == 1)
    number = max(seconds / size, 1)
    step = 1 if number < 10 else 5 if number < 60 else 10
    return f'{step * round(number / step)} {unit}'


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
