"""Arguments, looked at before anything is loaded."""
import difflib
import importlib.util
import os
from pathlib import Path
from typing import Any, Iterable, Optional, Sequence

from ..dependencies import MissingLibrary
from ..files import PathLike, check_output
from ..packaged import install_command
from .arguments import ArgumentError

# Models by the name that pretrain takes, and the packaged config of each.
MODELS = {
    'vit-s': 'cmae_vit-s_300e',
    'vit-b': 'cmae_vit-b_300e',
    'vit-l': 'cmae_vit-l_800e',
    'vit-h': 'cmae_vit-h_800e',
    'convvit-b': 'cmae_convvit-b_300e',
    'mini': 'quickstart/cmae_vit-mini_tiles',
}
ENCODERS = ('online', 'target')
POOLS = ('mean', 'cls', 'patch')
# Where figures go beside the file of the work folder, and the libraries.
LOG_TO = {
    'tensorboard': 'tensorboard',
    'wandb': 'wandb',
    'mlflow': 'mlflow',
    'file': None,
}


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that a value is one of those allowed.

    Raises:
        ArgumentError: If it is not; the message names the nearest.
    """
    allowed = list(allowed)
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ArgumentError(
        f'{name} must be one of {", ".join(allowed)}, but got {value!r}{hint}')


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Check that a value is a whole number, or None.

    Raises:
        ArgumentError: If it is neither, or less than allowed.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(
            f'{name} must be a whole number of {least} or more, but got '
            f'{value!r}')


def check_log_to(names: Sequence[str]) -> None:
    """Check that a run can log to what is named.

    Raises:
        ArgumentError: If one is none of :data:`LOG_TO`.
        ImportError: If the library of one is missing.
    """
    for name in names:
        check_choice('log_to', name, LOG_TO)
        library = LOG_TO[name]
        if library and not importlib.util.find_spec(library):
            raise ImportError(
                f'logging to {name} needs {library}, which is not installed: '
                f'install it with `pip install {library}`, or all of them '
                f'with `{install_command("logging")}`')


def check_data(data: PathLike) -> Path:
    """Check that there is a folder or a file.

    Args:
        data (str | PathLike): A folder of images, a list, a store or shards.

    Returns:
        Path: The folder or file, absolute.

    Raises:
        ArgumentError: If there is none.
    """
    path = Path(data).expanduser()
    if path.is_dir() or path.is_file():
        return Path(os.path.abspath(path))
    what = 'is no folder or file' if path.exists() else 'does not exist'
    raise ArgumentError(
        f'the data folder {str(data)!r} {what}; name a folder of images, with '
        'or without class folders, a list of them, a store or shards')


def check_onnx_file(out: PathLike) -> None:
    """Check that an ONNX file can be written.

    Raises:
        ArgumentError: If the ending is another.
        OSError: If it cannot be written.
        MissingLibrary: If a library for it is not installed.
    """
    file = Path(out).expanduser()
    if file.suffix != '.onnx':
        raise ArgumentError(
            f'ONNX files are written as .onnx, but out is {str(out)!r}')
    check_output(file)
    for library in ('onnx', 'onnxscript', 'onnxruntime'):
        if not importlib.util.find_spec(library):
            raise MissingLibrary(
                f'exporting to ONNX needs {library}, which is not installed: '
                f'install it with `{install_command("onnx")}`')


def check_pretraining(data: PathLike,
                      model: str = 'vit-b',
                      epochs: Optional[int] = None,
                      batch_size: Optional[int] = None,
                      num_workers: Optional[int] = None,
                      out: Optional[PathLike] = None,
                       stats: Optional[PathLike] = None,
                       init: Optional[PathLike] = None,
                       log_to: Sequence[str] = ()) -> None:
    """Check the arguments of :func:`cmae_mm.pretrain`.

    Raises:
        ArgumentError: If one is none of what is allowed.
        ImportError: If a library to log to is missing.
    """
    check_choice('model', model, MODELS)
    check_whole_number('epochs', epochs, 1)
    # InfoNCE needs negatives, and BatchNorm something to normalise over.
    check_whole_number('batch_size', batch_size, 2)
    check_whole_number('num_workers', num_workers, 0)
    if out is not None:
        check_output(Path(out).expanduser(), is_folder=True)
    check_stats(stats)
    if init is not None:
        check_checkpoint(init)
    check_log_to(log_to)
    check_data(data)


def check_stats(stats: Optional[PathLike]) -> None:
    """Check that there is a file of image statistics, where one is named.

    Raises:
        ArgumentError: If there is none.
    """
    if stats is not None and not Path(stats).expanduser().is_file():
        raise ArgumentError(
            f'there is no file of image statistics {str(stats)!r}; make it '
            f'with `cmae stats DATA --out {stats}`')


def check_checkpoint(checkpoint: PathLike) -> None:
    """Check that there is a checkpoint.

    Raises:
        ArgumentError: If there is no such file.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir() and not any((path / name).is_file() for name in (
            'model.safetensors', 'model.safetensors.index.json',
            'pytorch_model.bin')):
        raise ArgumentError(f'{checkpoint} is a folder, where a checkpoint '
                            'file is to be named')
    if not path.exists():
        raise ArgumentError(f'there is no checkpoint {checkpoint}')
