"""Machine and work folder of a run: device, processes, lock, config."""
import datetime
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import (is_cuda_available, is_mlu_available,
                             is_musa_available, is_npu_available)
from mmengine.dist import get_rank, is_distributed
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..files import PathLike, output_error, output_lock, write_file
from ..plain_config import format_config

# Variables of launchers with the number of processes and the rank.
LAUNCHERS = dict(
    pytorch=('WORLD_SIZE', 'RANK'),
    slurm=('SLURM_NTASKS', 'SLURM_PROCID'),
    mpi=('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'))


def has_accelerator() -> bool:
    """Return whether there is a device with autocast in mmengine."""
    return (is_cuda_available() or is_npu_available() or is_mlu_available()
            or is_musa_available())


def host_memory_mb() -> float:
    """Return the peak memory of this process in MiB."""
    # in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == 'darwin' else 1024)


def unwrapped_model(runner: Runner) -> nn.Module:
    """Return a runner's model without its distributed wrapper."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def group_timeout(cfg: Config) -> dict[str, Any]:
    """Return the timeout of a config's process groups.

    Args:
        cfg (Config): The config of a runner, where
            ``env_cfg.dist_cfg.timeout`` is a number of seconds.

    Returns:
        dict[str, Any]: ``timeout`` for ``init_process_group`` and
        ``new_group``; empty for torch's default.
    """
    settings = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    seconds = settings.get('timeout')
    return {} if seconds is None else dict(
        timeout=datetime.timedelta(seconds=seconds))


def adapt_to_device(cfg: Config) -> None:
    """Adapt a config to this machine, in place.

    Without an accelerator, batches are not pinned, and distributed ranks use
    gloo. BatchNorm is not synchronised between them: each rank normalises over
    its own batch.

    Args:
        cfg (Config): The config of a runner.

    Raises:
        ValueError: If the launcher has not started this process, a launcher
            other than pytorch and slurm is to start ranks on CPUs, or torchrun
            has started several without a launcher.
    """
    launcher = cfg.get('launcher', 'none')
    missing = [name for name in LAUNCHERS.get(launcher, ())
               if name not in os.environ]
    if missing and not dist.is_initialized():
        raise ValueError(
            f'--launcher {launcher} is set, but its variable {missing[0]} is '
            'not; start the processes with tools/dist_train.sh, torchrun, '
            'srun or mpirun, or leave --launcher out for one process')
    started = int(os.environ.get('WORLD_SIZE', 1))
    if launcher == 'none' and started > 1 and (
            'TORCHELASTIC_RUN_ID' in os.environ):
        raise ValueError(
            f'torchrun has started {started} processes, but each would train '
            'alone; add --launcher pytorch')
    if has_accelerator():
        return
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader') or {}
        if loader.get('pin_memory'):
            loader['pin_memory'] = False  # torch warns of it on CPUs
    if launcher not in ('none', 'pytorch', 'slurm'):
        raise ValueError(
            f'--launcher {launcher} needs an accelerator on each rank, and '
            'none was found; ranks on CPUs are started by --launcher pytorch '
            'or slurm')
    if launcher != 'none':
        # mmengine would need a CUDA device; it uses an existing group.
        if not dist.is_initialized():
            if launcher == 'slurm':
                _name_slurm_ranks()
            dist.init_process_group('gloo', **group_timeout(cfg))
        wrapper = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False))
        cfg.setdefault('model_wrapper_cfg', wrapper)
        if cfg.get('sync_bn') is not None:
            cfg.sync_bn = None
            print_log('No accelerator found: BatchNorm is not synchronised '
                      'between processes.')
    optim_wrapper = cfg.get('optim_wrapper')
    if optim_wrapper and optim_wrapper.get('type') == 'AmpOptimWrapper':
        optim_wrapper.type = 'AutoAmpOptimWrapper'


def _name_slurm_ranks() -> None:
    """Set torch's variables from Slurm's, as mmengine does with GPUs."""
    for name, source in (('RANK', 'SLURM_PROCID'),
                         ('WORLD_SIZE', 'SLURM_NTASKS'),
                         ('LOCAL_RANK', 'SLURM_LOCALID')):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
            capture_output=True,
            text=True,
            check=True)
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]


# First words of configs written to a work folder.
MARK = '# Written by cmae_mm'


def count_processes(launcher: str) -> int:
    """Return the number of processes started by a launcher."""
    names = LAUNCHERS.get(launcher)
    return int(os.environ.get(names[0], 1)) if names else 1


def is_first_process(launcher: str) -> bool:
    """Return whether this is rank 0, also without a process group."""
    if is_distributed():
        return get_rank() == 0
    names = LAUNCHERS.get(launcher)
    return int(os.environ.get(names[1], 0)) == 0 if names else True


@contextmanager
def work_dir_lock(folder: PathLike, launcher: str) -> Iterator[None]:
    """Lock a work folder against a second training.

    Rank 0 holds the lock for all processes of a training.

    Args:
        folder (str | PathLike): The work folder, which is made if missing.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ValueError: If the name of the folder is not UTF-8.
        OutputInUse: If another training writes to the folder.
        OSError: If the folder is not writable.
    """
    if not is_first_process(launcher):
        yield
        return
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError as error:  # OpenCV crashes on such names
        raise ValueError(
            f'the name of the work folder {os.fspath(folder)!r} is not UTF-8; '
            'choose another one') from error
    with output_lock(folder, is_folder=True):
        try:
            yield
        except OSError as error:
            # Output of mmengine's logs.
            if error.errno == errno.ENOSPC and error.filename is None:
                raise output_error(folder, error) from error
            raise


class RunConfig(Config):
    """Config with a lossless text, see :func:`format_config`."""

    @property
    def pretty_text(self) -> str:
        """Return the config as Python text."""
        return format_config(self.to_dict())


def write_config(cfg: Config, folder: PathLike) -> Path:
    """Write a config to a work folder, with the name of its file.

    If this file is the source of the config or was written by the user, the
    config is written to ``<name>_used.py`` instead.

    Args:
        cfg (Config): The config.
        folder (str | PathLike): The folder.

    Returns:
        Path: The file.
    """
    path = Path(folder) / f'{Path(cfg.filename or "config").stem}.py'
    while not _may_replace(path, cfg.filename):
        path = path.with_name(f'{path.stem}_used.py')
    write_file(path, f'{MARK}: the config of the last run here\n'
               f'{format_config(cfg.to_dict())}')
    return path


def _may_replace(path: Path, source: Any) -> bool:
    """Return whether a file is missing or was written by this project."""
    try:
        if source is not None and os.path.samefile(path, source):
            return False
        return path.read_bytes().startswith(MARK.encode())
    except FileNotFoundError:
        return not os.path.lexists(path)
    except OSError:
        return False
