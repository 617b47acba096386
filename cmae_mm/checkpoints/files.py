"""Reading and writing checkpoint files, without running what is in them."""
import os
import pickle
from pathlib import Path
from typing import Any, Dict, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .zip_records import ZipRecords

StateDict = Dict[str, Tensor]
# A runner's checkpoint holds mmengine's log history besides tensors: a few
# arrays of numbers. `getattr` names its statistics; what it finds cannot be
# called, as safe loading calls what is on the list alone.
LOG_HISTORY = (
    HistoryBuffer,
    getattr,
    np.ndarray,
    np.dtype,
    np.empty(0).__reduce__()[0],  # private functions that numpy has moved
    np.float64(0).__reduce__()[0],
    *{type(np.dtype(kind)) for kind in 'fdlqiI?'},
)
# What frameworks wrap a state dict in.
_WRAPPERS = ('state_dict', 'model')


class Checkpoint(NamedTuple):
    """A state dict and what the file says about itself."""

    state: StateDict
    meta: Dict[str, Any]


def read_checkpoint(path: str) -> Checkpoint:
    """Read a ``.safetensors`` or pickled file, or a Hugging Face folder.

    Pickled files are read with ``weights_only=True``: nothing in them is run.

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
        raise CheckpointError(f'there is no checkpoint {file}')
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
        raise CheckpointError(f'there is no checkpoint {file}')
    if file.suffix == '.safetensors':
        _read_safetensors(file)
        return
    with open(file, 'rb') as opened:
        start = opened.read(4)
        if start == b'PK\x03\x04':
            ZipRecords(opened, str(file)).verify()
            return
    if not start.strip(b'\0'):
        raise CheckpointError(f'{file} is damaged: it is empty, or starts '
                              'with zeros')
    _read_pickled(file)


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, 'pt') as opened:
            state = {k: opened.get_tensor(k) for k in list(opened.keys())}
            return Checkpoint(state, dict(opened.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(
            f'{file} is not a safetensors file: {error}') from error


def _load_weights_only(file: Path) -> Any:
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5
        return torch.load(file, map_location='cpu', weights_only=True)
    with torch.serialization.safe_globals(list(LOG_HISTORY)):
        return torch.load(file, map_location='cpu', weights_only=True)


def _read_pickled(file: Path) -> Checkpoint:
    try:
        content = _load_weights_only(file)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if 'global' in reason.lower():
            raise CheckpointError(
                f'{file} holds more than tensors and plain values, and reading'
                ' it could run code that is in it, so it is refused; if you '
                'trust its origin, load it once with torch.load(..., '
                "weights_only=False) and save its 'state_dict' alone"
            ) from None
        raise CheckpointError(
            f'{file} is not a checkpoint that torch can read') from error
    # Of arbitrary bytes the unpickler makes arbitrary errors.
    except Exception as error:
        raise CheckpointError(f'{file} is not a checkpoint that torch can '
                              f'read: {error}') from error
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
            holds strings.

    Raises:
        CheckpointError: If the file's ending is neither of these.
    """
    file = Path(path).expanduser()
    if file.suffix not in ('.safetensors', '.pth'):
        raise CheckpointError(
            f'{file}: checkpoints are written as .safetensors or .pth')
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
def load_from_safetensors(filename: str, map_location=None) -> dict:
    """Let mmengine read safetensors: ``init_cfg``, ``load_from``, tools.

    Args:
        filename (str): A local ``.safetensors`` file.
        map_location (str, optional): See ``torch.load``.

    Returns:
        dict: With ``state_dict`` and ``meta``, as mmengine's own files.
    """
    state, meta = read_checkpoint(filename)
    if map_location is not None and isinstance(map_location,
                                               (str, torch.device)):
        state = {k: v.to(map_location) for k, v in state.items()}
    return dict(state_dict=state, meta=meta)
