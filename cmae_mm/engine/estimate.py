"""Time and memory of a training, from a few measured steps."""
import copy
import itertools
import math
import time
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import EpochBasedTrainLoop

from ..dependencies import cpu_count
from ..progress import describe_seconds
from .device import host_memory_mb, unwrapped_model
from .hooks.evaluation_hooks import keep_generators
from .optim_wrapper import skipping_steps
from .training_step import TrainingStep

# Steps that are measured, after one that is not.
_MEASURED_STEPS = 2


def estimate_training(runner: Any) -> str:
    """Estimate time and memory of a training.

    Trains a copy of the model on the first batch. Models, generators and
    loaders are left as they are. All processes must call it.

    Args:
        runner (ResumableRunner): Before training.

    Returns:
        str: 'about 58 s on this machine: 600 steps of 0.08 s; 850 MiB of
        memory', '' if the training does not count epochs or a step does not
        fit into the memory of the GPU.
    """
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return ''
    level = runner.logger.level
    runner.logger.setLevel('ERROR')  # all is logged once more in training
    try:
        with keep_generators():
            return _measure(runner)
    except torch.cuda.OutOfMemoryError:
        return ''
    finally:
        runner.logger.setLevel(level)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(runner: Any) -> str:
    loader = runner.train_dataloader
    # Transforms count what they skip; the list of images may be large.
    dataset = copy.copy(loader.dataset)
    if hasattr(dataset, 'pipeline'):
        dataset.pipeline = copy.deepcopy(dataset.pipeline)
    numbers = next(iter(loader.batch_sampler or ()), None) or list(
        itertools.islice(iter(loader.sampler), 1))
    begun = time.perf_counter()
    batch = loader.collate_fn([dataset[number] for number in numbers])
    reading = time.perf_counter() - begun
    source = unwrapped_model(runner)
    model = revert_sync_batchnorm(copy.deepcopy(source)).train()
    step = TrainingStep(model, build_optim_wrapper(
        model, skipping_steps(runner.cfg.optim_wrapper)), batch)
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for number in range(1 + _MEASURED_STEPS):
        if number == 1:
            begun = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / _MEASURED_STEPS
    workers = loader.num_workers
    if on_gpu and workers:
        seconds = max(seconds, reading / workers)
    else:  # workers share the cores with the model
        seconds += reading / max(min(workers, cpu_count()), 1)
    loop = runner.train_loop
    steps = len(loader) * loop.max_epochs
    total = seconds * steps
    if runner.val_loop is not None:
        # An image that is validated costs about a third of one in training.
        total += seconds / len(numbers) / 3 * len(
            runner.val_dataloader.dataset) * (
                loop.max_epochs / loop.val_interval)
    memory, kind = host_memory_mb(), 'memory'
    if on_gpu:
        copied = sum(p.numel() * p.element_size() for p in source.parameters())
        memory = (torch.cuda.max_memory_allocated() - copied) / 2**20
        kind = 'GPU memory'
    used = '' if math.isnan(memory) else f'; {memory:,.0f} MiB of {kind}'
    return (f'about {describe_seconds(total)} on this machine: {steps:,} steps'
            f' of {seconds:.2g} s{used}')
