"""The processes of one training, and the folder that they write to."""
import os
from contextlib import contextmanager
from typing import Iterator

from mmengine.dist import get_rank, is_distributed

from ..files import PathLike, output_lock

# What launchers say of their processes: how many, and which one this is.
_LAUNCHERS = dict(
    pytorch=('WORLD_SIZE', 'RANK'),
    slurm=('SLURM_NTASKS', 'SLURM_PROCID'),
    mpi=('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'))


def count_processes(launcher: str) -> int:
    """Give how many processes a launcher has started, by its variables."""
    names = _LAUNCHERS.get(launcher)
    return int(os.environ.get(names[0], 1)) if names else 1


def is_first_process(launcher: str) -> bool:
    """Tell whether this is rank 0, also before the processes have met."""
    if is_distributed():
        return get_rank() == 0
    names = _LAUNCHERS.get(launcher)
    return int(os.environ.get(names[1], 0)) == 0 if names else True


@contextmanager
def work_dir_lock(folder: PathLike, launcher: str) -> Iterator[None]:
    """Keep a second training out of a work folder.

    Rank 0 holds the lock for all processes of a training.

    Args:
        folder (str | PathLike): The work folder, which is made if missing.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        OutputInUse: If another training writes to the folder.
        OSError: If nothing can be written there.
    """
    if not is_first_process(launcher):
        yield
        return
    with output_lock(folder, is_folder=True):
        yield
