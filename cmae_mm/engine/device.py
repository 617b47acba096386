"""Device settings of a run: process groups and wrappers."""
import datetime
import os
import resource
import subprocess
import sys
from typing import Any, Dict

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import (
    is_cuda_available,
    is_mlu_available,
    is_musa_available,
    is_npu_available,
)
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

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


def group_timeout(cfg: Config) -> Dict[str, Any]:
    """Return the timeout of a config's process groups.

    Args:
        cfg (Config): The config of a runner, where
            ``env_cfg.dist_cfg.timeout`` is a number of seconds.

    Returns:
        Dict[str, Any]: ``timeout`` for ``init_process_group`` and
        ``new_group``; empty for torch's default.

    Raises:
        ValueError: If it is not a positive number.
    """
    settings = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    seconds = settings.get('timeout')
    if seconds is None:
        return {}
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError('env_cfg.dist_cfg.timeout must be a number of seconds'
                         f' above 0, but got {seconds!r}')
    return dict(timeout=datetime.timedelta(seconds=seconds))


def adapt_to_device(cfg: Config) -> None:
    """Adapt a config to this machine, in place.

    Without an accelerator, batches are not pinned, and distributed ranks use
    gloo. BatchNorm is not synchronised between them: each rank normalises over
    its own batch.

    Args:
        cfg (Config): The config of a runner.

    Raises:
        ValueError: If the launcher has not started this process, a launcher
            other than pytorch and slurm is to start ranks on CPUs, or the
            process groups' timeout is not positive.
    """
    launcher = cfg.get('launcher', 'none')
    missing = [name for name in LAUNCHERS.get(launcher, ())
               if name not in os.environ]
    if missing and not dist.is_initialized():
        raise ValueError(
            f'--launcher {launcher} is set, but its variable {missing[0]} is '
            'not; start the processes with tools/dist_train.sh, torchrun, '
            'srun or mpirun, or leave --launcher out for one process')
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
