"""How much memory there is, and how much something takes."""
import os
from pathlib import Path
from typing import Any, Optional

import torch


def read_status(name: str, pid: Optional[int] = None) -> int:
    """Read a size of a process from Linux.

    Args:
        name (str): For instance 'VmRSS', the resident set, or 'VmHWM', its
            high-water mark.
        pid (int, optional): The process. Defaults to None, this one.

    Returns:
        int: The size in bytes.

    Raises:
        OSError: If there is no such process or size.
    """
    path = Path(f'/proc/{os.getpid() if pid is None else pid}/status')
    for line in path.read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'{path} says nothing of {name}')


def available_memory() -> int:
    """Give the bytes that a process may still take without swapping.

    Those of the machine, or what is left of a container's share.
    """
    lines = Path('/proc/meminfo').read_text().splitlines()
    found = dict(line.split(':') for line in lines)
    free = int(found['MemAvailable'].split()[0]) * 1024
    group = Path('/sys/fs/cgroup')
    try:
        share = (group / 'memory.max').read_text().strip()
        if share != 'max':
            used = int((group / 'memory.current').read_text())
            free = min(free, int(share) - used)
    except OSError:  # not in a container
        pass
    return max(free, 0)


class PeakMemory:
    """Largest memory that is added while something is done, in MiB.

    On a GPU what torch allocates; on a CPU the resident set of the process,
    by Linux' own high-water mark.

    Args:
        device (torch.device): Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> 'PeakMemory':
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            reset_peak()
            self._before = read_status('VmRSS')
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == 'cuda':
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = read_status('VmHWM')
        self.mib = (peak - self._before) / 2**20


def reset_peak() -> None:
    """Let the high-water mark of this process begin anew."""
    Path('/proc/self/clear_refs').write_text('5')
