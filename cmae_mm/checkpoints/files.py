"""Reading and writing checkpoint files, without running what is in them."""
import os
from pathlib import Path
from typing import Any, Dict, NamedTuple

import torch
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .log_history import from_plain
from .torch_files import MapLocation, load_file
from .zip_records import ZipRecords

StateDict = Dict[str, Tensor]
# What frameworks wrap a state dict in.
_WRAPPERS = ('state_dict', 'model')


class Checkpoint(NamedTuple):
    """A state dict and what the file says about itself."""

    state: StateDict
    meta: Dict[str, Any]


def _no_file(path: Path) -> str:
    """Say why a path is no checkpoint."""
    if path.is_dir():
        return f'{path} is a folder, where a checkpoint file is to be named'
    return f'there is no checkpoint {path}'


def read_checkpoint(path: str) -> Checkpoint:
    """Read a ``.safetensors`` or pickled file, or a Hugging Face folder.

    Nothing in a pickled file is run, see :func:`load_file`.

    Args:
        path (str): The file, or a folder with ``model.safetensors``.

    Returns:
        Checkpoint: The tensors, on the CPU, without wrappers
        (``state_dict``, ``model``) and without a ``module.`` prefix.

    Raises:
        CheckpointError: If there is no such file, it cannot be read safely,
            or it holds no tensors.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / 'model.safetensors'
    if not file.is_file():
        raise CheckpointError(_no_file(file))
    if file.suffix == '.safetensors':
        state, meta = _read_safetensors(file)
    else:
        state, meta = _read_pickled(file)
    state = {
        k.removeprefix('module.'): v
        for k, v in state.items() if isinstance(v, Tensor)
    }
    if not state:
        raise CheckpointError(f'{file} holds no tensors')
    return Checkpoint(state, meta)


def check_whole(path: str) -> None:
    """Check that a checkpoint file is whole, without building what it holds.

    Args:
        path (str): A local file, ``.pth`` or ``.safetensors``.

    Raises:
        CheckpointError: If there is no such file, or it is empty, cut off,
            or differs from its checksums.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(_no_file(file))
    if file.suffix == '.safetensors':
        _read_safetensors(file)
        return
    with open(file, 'rb') as opened:
        if opened.read(4) == b'PK\x03\x04':
            ZipRecords(opened, str(file)).verify()
            return
    load_file(file, 'cpu')


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, 'pt') as opened:
            state = {k: opened.get_tensor(k) for k in list(opened.keys())}
            return Checkpoint(state, dict(opened.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(
            f'{file} is not a safetensors file: {error}') from error


def _read_pickled(file: Path) -> Checkpoint:
    content = load_file(file, 'cpu')
    meta: Dict[str, Any] = {}
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(
                content.get(wrapper), dict):
            meta = content.get('meta') or {}
            meta = meta if isinstance(meta, dict) else {}
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f'{file} holds a {type(content).__name__}, not a'
                              ' state dict')
    return Checkpoint(content, meta)


def write_checkpoint(path: str, state: StateDict,
                     meta: Dict[str, Any]) -> None:
    """Write a checkpoint, in full or not at all.

    Args:
        path (str): ``.safetensors``, or ``.pth`` for torch's own format with
            ``state_dict`` and ``meta``.
        state (StateDict): The tensors.
        meta (Dict[str, Any]): What the file says about itself; safetensors
            holds strings alone.

    Raises:
        CheckpointError: If the file's ending is neither of these, or it cannot
            be written.
    """
    file = Path(path).expanduser()
    if file.suffix not in ('.safetensors', '.pth'):
        raise CheckpointError(
            f'{file}: checkpoints are written as .safetensors or .pth')
    try:
        _write(file, state, meta)
    # torch and safetensors have errors of their own for what cannot be written
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f'{file} could not be written: {reason}'
                              ) from error


def _write(file: Path, state: StateDict, meta: Dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    partial = file.with_name(file.name + '.partial')
    if file.suffix == '.safetensors':
        # Tensors that share memory are not allowed there.
        save_file({k: v.clone() for k, v in state.items()}, partial,
                  {k: str(v) for k, v in meta.items()})
    else:
        torch.save(dict(state_dict=state, meta=meta), partial)
    os.replace(partial, file)


@CheckpointLoader.register_scheme(prefixes=r'.+\.safetensors$')
def load_from_safetensors(filename: str,
                          map_location: MapLocation = None) -> dict:
    """Let mmengine read safetensors: ``init_cfg``, ``load_from``, tools.

    Args:
        filename (str): A local ``.safetensors`` file.
        map_location (str, optional): See ``torch.load``.

    Returns:
        dict: ``state_dict`` and ``meta``, as in mmengine's own files.
    """
    state, meta = read_checkpoint(filename)
    if map_location is not None and isinstance(map_location,
                                               (str, torch.device)):
        state = {k: v.to(map_location) for k, v in state.items()}
    return dict(state_dict=state, meta=meta)


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """Let mmengine read local files without running what is in them.

    Args:
        filename (str): A file that ``torch.save`` wrote.
        map_location (optional): See ``torch.load``.

    Returns:
        Any: What was saved; of a runner's checkpoint, as it resumes it.

    Raises:
        CheckpointError: If it is damaged, or holds more than tensors and
            plain values.
    """
    file = Path(filename).expanduser()
    if not file.is_file():
        raise FileNotFoundError(_no_file(file))
    return ready_to_resume(load_file(file, map_location))


def ready_to_resume(content: Any) -> Any:
    """Give a runner's checkpoint the form in which mmengine resumes it.

    Log histories are rebuilt from plain values. A config under the name that
    mmengine would run it by (``meta['config']``, which none of its versions
    writes) is left out.

    Args:
        content (Any): The content of a file.

    Returns:
        Any: The same, modified where it is a runner's checkpoint.
    """
    if isinstance(content, dict):
        if isinstance(content.get('message_hub'), dict):
            content['message_hub'] = from_plain(content['message_hub'])
        if isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)
    return content
