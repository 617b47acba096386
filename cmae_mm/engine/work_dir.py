"""Work folder of a training: lock, config and log back ends."""
import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from mmengine.config import Config
from mmengine.dist import get_rank, is_distributed

from ..files import PathLike, output_error, output_lock, write_file
from ..plain_config import format_config
from .device import LAUNCHERS

# First words of configs written to a work folder.
MARK = '# Written by cmae_mm'

_BACKENDS = dict(
    file='LocalVisBackend',
    tensorboard='TensorboardVisBackend',
    wandb='mmpretrain.WandbBackend',
    mlflow='mmpretrain.MLflowBackend')


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


def log_to(cfg: Config, names: Sequence[str]) -> None:
    """Add visualisation back ends to a config, in place.

    The log file in the work folder, used by reports, is always written.

    Args:
        cfg (Config): The config of a runner.
        names (Sequence[str]): 'tensorboard', 'wandb', 'mlflow' or 'file'
            each.
    """
    if not names:
        return
    visualizer = cfg.get('visualizer') or dict(type='Visualizer')
    backends = list(visualizer.get('vis_backends') or ())
    there = {str(b['type']).split('.')[-1] for b in backends}
    for name in dict.fromkeys(['file', *names]):
        if _BACKENDS[name].split('.')[-1] not in there:
            backends.append(dict(type=_BACKENDS[name]))
    cfg.visualizer = dict(visualizer, vis_backends=backends)
