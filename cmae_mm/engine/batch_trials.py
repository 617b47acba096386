"""Trying batch sizes by real training steps, within a budget of memory."""
import gc
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from .memory import read_status
from .training_step import TrainingStep, build_training_step, fake_batch

# Seconds between two looks at how much memory a trial takes.
_BETWEEN = 0.02
_WARM_UP, _TIMED = 2, 2


class TrialError(ValueError):
    """Steps that fail for another reason than memory."""


class Trial(NamedTuple):
    """How a batch size went.

    Args:
        batch_size (int): Number of images.
        fits (bool): Whether its steps stayed within the budget.
        peak_gib (float, optional): Memory of model, optimizer and activations
            at its peak, in GiB; None where it did not fit.
        images_per_s (float, optional): Speed; None where it did not fit.
    """

    batch_size: int
    fits: bool
    peak_gib: Optional[float] = None
    images_per_s: Optional[float] = None


def search(attempt: Callable[[int], Trial], least: int,
           most: int) -> List[Trial]:
    """Find the largest batch that fits: double, then bisect.

    Args:
        attempt (Callable): Tries a batch size.
        least (int): The first batch size.
        most (int): The largest that is tried.

    Returns:
        List[Trial]: All trials. The largest that fits is within a sixteenth
        of one that does not, or is ``most``.
    """
    trials = [attempt(min(least, most))]
    while trials[-1].fits and trials[-1].batch_size < most:
        trials.append(attempt(min(2 * trials[-1].batch_size, most)))
    fit, unfit = largest(trials), trials[-1].batch_size
    if trials[-1].fits or not fit:
        return trials
    while unfit - fit > max(1, fit // 16):
        size = (fit + unfit) // 2
        if size - size % 8 > fit:  # what kernels are made for
            size -= size % 8
        trials.append(attempt(size))
        if trials[-1].fits:
            fit = size
        else:
            unfit = size
    return trials


def largest(trials: List[Trial]) -> int:
    """Give the largest batch size that fits; 0 if none does."""
    return max((t.batch_size for t in trials if t.fits), default=0)


def build_trial_step(cfg: Config, device: torch.device,
                     activation_checkpointing: Any) -> TrainingStep:
    """Build a step that holds as much memory as those of a training do."""
    wrapper = dict(cfg.optim_wrapper)
    if wrapper.get('accumulative_counts', 1) > 1:
        # Gradients are held from step to step, in as few steps as can be.
        wrapper['accumulative_counts'] = 2
    with _without_infos():
        return build_training_step(
            cfg, device, wrapper, activation_checkpointing)


@contextmanager
def _without_infos() -> Iterator[None]:
    """Leave out the lines on each parameter that is initialised."""
    # Not logging.disable: what it turned off stays off in mmengine's logger.
    logger = MMLogger.get_current_instance()

    def above(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    logger.addFilter(above)
    try:
        yield
    finally:
        logger.removeFilter(above)


def time_steps(step: TrainingStep, cfg: Config, batch_size: int,
               device: torch.device) -> float:
    """Make some steps; give the images/s of the latter ones."""
    step.batch = fake_batch(cfg, batch_size, device)
    for _ in range(_WARM_UP):
        step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(_TIMED):
        step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return batch_size * _TIMED / (time.perf_counter() - start)


class DeviceTrials:
    """Tries batch sizes on a GPU, in this process.

    Args:
        cfg (Config): The config of a pre-training.
        budget (int): Bytes that torch may allocate.
        activation_checkpointing (Any): See ``build_training_step``.

    Raises:
        TrialError: If the model by itself needs more.
    """

    def __init__(self, cfg: Config, budget: int,
                 activation_checkpointing: Any) -> None:
        self.cfg = cfg
        self.device = torch.device('cuda', torch.cuda.current_device())
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(
            min(budget / total, 1.), self.device)
        try:
            self.step = build_trial_step(
                cfg, self.device, activation_checkpointing)
        except torch.cuda.OutOfMemoryError:
            raise TrialError('the model by itself needs more than the '
                             f'{budget / 2**30:.1f} GiB') from None

    def __call__(self, batch_size: int) -> Trial:
        """Try a batch size."""
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            rate = time_steps(self.step, self.cfg, batch_size, self.device)
            peak = torch.cuda.max_memory_reserved(self.device) / 2**30
            return Trial(batch_size, True, peak, rate)
        except torch.cuda.OutOfMemoryError:
            return Trial(batch_size, False)
        finally:
            self._clear()

    def _clear(self) -> None:
        """Drop what a step has left, whole or not."""
        self.step.batch = None
        self.step.wrapper.optimizer.zero_grad(set_to_none=True)
        getattr(self.step.wrapper, '_losses', []).clear()
        gc.collect()
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Free all memory, and allow all of it again."""
        self.step = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1., self.device)


class ChildTrials:
    """Tries batch sizes on the CPU, in a process of its own.

    Its resident set is watched, and it is ended when that has grown by the
    budget, long before the kernel would end anything. The budget counts from
    the libraries on: model, optimizer, activations.

    Args:
        cfg (Config): The config of a pre-training.
        budget (int): Bytes that it may take.
        activation_checkpointing (Any): See ``build_training_step``.
    """

    def __init__(self, cfg: Config, budget: int,
                 activation_checkpointing: Any) -> None:
        self.budget = budget
        self._task = dict(config=cfg.pretty_text,
                          checkpointing=activation_checkpointing)
        self._child: Optional[subprocess.Popen] = None

    def __call__(self, batch_size: int) -> Trial:
        """Try a batch size.

        Raises:
            TrialError: If it fails for another reason than memory.
        """
        if self._child is None:
            self._start()
        self._send(batch_size)
        answer = self._wait()
        if answer is None:
            return Trial(batch_size, False)
        peak = (answer['peak'] - self._base) / 2**30
        return Trial(batch_size, True, peak, answer['images_per_s'])

    def close(self) -> None:
        """End the process."""
        if self._child is None:
            return
        child, self._child = self._child, None
        child.kill()
        child.wait()
        child.stdin.close()
        self._answers.close()
        self._said.close()

    def _start(self) -> None:
        self._base = None
        self._said = tempfile.TemporaryFile('w+')  # noqa: SIM115  see close
        reader, writer = os.pipe()
        # Unbuffered, as what select tells of.
        self._answers = os.fdopen(reader, 'rb', buffering=0)
        self._child = subprocess.Popen(
            [sys.executable, '-m', 'cmae_mm.engine.batch_child', str(writer)],
            pass_fds=[writer], stdin=subprocess.PIPE, stdout=self._said,
            stderr=self._said, text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(
                path or os.getcwd() for path in sys.path)))
        os.close(writer)
        self._send(self._task)
        self._base = self._wait()['base']

    def _send(self, message: Any) -> None:
        try:
            self._child.stdin.write(json.dumps(message) + '\n')
            self._child.stdin.flush()
        except BrokenPipeError:  # it has ended; _wait says why
            pass

    def _wait(self) -> Optional[dict]:
        """Wait for an answer; None if memory ran out."""
        text = b''
        while not text.endswith(b'\n'):
            if select.select([self._answers], [], [], _BETWEEN)[0]:
                read = self._answers.read(1 << 16)
                if not read:
                    return self._explain_end()
                text += read
            elif self._base is not None and (
                    read_status('VmRSS', self._child.pid) - self._base
                    > self.budget):
                self.close()
                return None
        answer = json.loads(text)
        if 'error' in answer:
            self.close()
            raise TrialError(answer['error'])
        if self._base is not None and (
                answer['peak'] - self._base > self.budget):
            return None
        return answer

    def _explain_end(self) -> None:
        """Tell a process that the kernel has ended from a broken one."""
        status = self._child.wait()
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        self.close()
        if status != -9:
            raise TrialError('the process of the trials ended with status '
                             f'{status}: {said[-1] if said else "no word"}')
