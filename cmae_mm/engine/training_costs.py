"""Time, memory and energy of a training.

pynvml reads the energy, if it is installed (extra='logging').
"""
import sys
from typing import Any, Dict, Optional

import torch
from mmengine.dist import get_rank
from mmengine.runner import Runner

try:
    import resource
except ImportError:  # on Windows
    resource = None

_MB, _WATT_HOUR = 2**20, 3.6e6  # in bytes, in millijoules


class RunCosts:
    """Measures what a training costs from one measurement to the next."""

    def __init__(self) -> None:
        self._last: Optional[int] = None
        self._meter = _find_energy_meter()
        self._energy = self._meter() if self._meter else 0

    def measure(self, runner: Runner, batch: int) -> Dict[str, float]:
        """Measure, after an iteration.

        Args:
            runner (Runner): The runner, with mmengine's ``IterTimerHook``.
            batch (int): Images of an iteration, of all processes.

        Returns:
            Dict[str, float]: ``images_seen``, and, where they are known,
            ``host_memory_mb``, ``data_wait``, ``images_per_second``,
            ``hours_left``, ``device_memory_mb`` and ``energy_wh``.
        """
        done = runner.iter + 1
        steps = done - (self._last if self._last is not None else done - 1)
        self._last = done
        scalars = runner.message_hub.log_scalars
        found: Dict[str, float] = dict(images_seen=done * batch)
        if resource is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            # in bytes on macOS, in KiB elsewhere
            found['host_memory_mb'] = peak / (
                _MB if sys.platform == 'darwin' else 1024)
        if 'train/time' in scalars and 'train/data_time' in scalars:
            time = scalars['train/time'].mean(max(steps, 1))
            wait = scalars['train/data_time'].mean(max(steps, 1))
            if time > 0:
                found['data_wait'] = 100 * min(float(wait / time), 1.)
                found['images_per_second'] = float(batch / time)
        left = runner.message_hub.runtime_info.get('eta')
        if left is not None:
            found['hours_left'] = left / 3600
        if torch.cuda.is_available():
            found['device_memory_mb'] = torch.cuda.max_memory_allocated() / _MB
        if self._meter is not None:
            found['energy_wh'] = (self._meter() - self._energy) / _WATT_HOUR
        return found


def _find_energy_meter() -> Any:
    """Give what reads a device's energy in millijoules; None without one."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID(
            f'GPU-{torch.cuda.get_device_properties(_device()).uuid}')
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    # Of older drivers and devices.
    except (pynvml.NVMLError, AttributeError):
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device)


def _device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else (
        get_rank() % torch.cuda.device_count())
