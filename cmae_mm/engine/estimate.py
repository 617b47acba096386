"""Time and memory of a training, from a few measured steps."""
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.dist import broadcast_object_list
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import EpochBasedTrainLoop

from ..dependencies import cpu_count
from .device import host_memory_mb, unwrapped_model
from .hooks.evaluation_hooks import keep_generators
from .optim_wrapper import NonFiniteError, skipping_steps

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
        with keep_generators():
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
        model, skipping_steps(runner.cfg.optim_wrapper))
    loop = runner.train_loop
    wrapper.message_hub = MessageHub('estimate')  # not in the run's log
    wrapper.initialize_count_status(model, 0, 1 << 30)  # no last step
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps = len(loader) * loop.max_epochs
    seconds = _time_steps(
        partial(model.train_step, batch, wrapper), int(steps * _SHARE), on_gpu)
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
