"""Checkpoint files: safe reading and atomic writing.

Supported formats: torch's zip format, its format before version 1.6, and
safetensors. :class:`DamagedCheckpoint` is raised only if a file is certainly
damaged. An input/output error or a failed allocation raises
:class:`CheckpointError`; the file may still be intact.
"""
import io
import json
import os
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError
from torch import Tensor
from torch.serialization import _get_restore_location

from ..dependencies import WEIGHT_FILES, explain_missing, find_checkpoint
from ..files import PathLike, atomic_file
from . import CheckpointError, DamagedCheckpoint, prefix_errors
from .unpickler import StorageId, from_plain, unpickle

StateDict = dict[str, Tensor]
# torch's legacy format starts with these numbers.
_MAGIC, _VERSION = 0x1950a86a20f9469cfc6c, 1001
_ZIP = b'PK\x03\x04'
# Keys of a state dict in checkpoints of frameworks.
_WRAPPERS = ('state_dict', 'model')
_FOLDER_SETTINGS = ('config.json', 'preprocessor_config.json')
# Few system calls, and a chunk fits into the CPU cache.
_CHUNK = 1 << 20
# First bytes and descriptions of files that are not checkpoints.
_OTHER_FILES = {
    b'version https://git-lfs': 'is a pointer of Git LFS in place of the '
                                'file, which `git lfs pull` fetches',
    b'GGUF': 'is a GGUF file, whose quantised weights are not read',
    b'\x89HDF': 'is an HDF5 file, for example of Keras, which is not '
                'supported',
    b'<': 'is a web page or XML file, not a checkpoint; download it again',
    b'{': 'is a JSON file; name the file of the weights, or their folder',
    b'\x1f\x8b': 'is an archive; unpack it'}
_NO_MEMORY = re.compile(r"(can't|cannot) allocate|not enough memory", re.I)


class Checkpoint(NamedTuple):
    """A state dict and the metadata of its file."""

    state: StateDict
    meta: dict[str, Any]


class _Source:
    """A file of known size that records input/output errors.

    A read beyond its end allocates no memory.
    """

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name
        self.error: OSError | None = None
        self.size = file.seek(0, os.SEEK_END)
        self.seek, self.tell, self.seekable = (
            file.seek, file.tell, file.seekable)
        self.seek(0)

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.tell())
        return self._try(self.file.read, left if count < 0 else
                         min(count, left))

    def readline(self) -> bytes:
        return self._try(self.file.readline)

    def readinto(self, buffer: Any) -> int:
        return self._try(self.file.readinto, buffer)

    def _try(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:
            self.error = error
            raise


@contextmanager
def _reading(source: _Source) -> Iterator[None]:
    """Convert errors while a file is read.

    Raises:
        DamagedCheckpoint: Instead of errors caused by a damaged file.
        CheckpointError: Instead of errors of input, output and memory.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # zipfile reports some errors of the disk as a bad file.
        cause = source.error or error
        reason = (str(cause) or type(cause).__name__).splitlines()[0][:200]
        if source.error or isinstance(error, MemoryError) or (
                _NO_MEMORY.search(str(error))):
            raise CheckpointError(
                f'{source.name} could not be read: {reason}') from error
        raise DamagedCheckpoint(
            f'{source.name} is damaged: {reason}') from error


@contextmanager
def _opened(path: PathLike) -> Iterator[_Source]:
    """Open a local file.

    Raises:
        CheckpointError: If it does not exist or cannot be opened.
    """
    path = os.path.expanduser(path)
    why = explain_missing(path)
    if why:
        raise CheckpointError(why)
    try:
        with open(path, 'rb') as opened:
            yield _Source(opened, path)
    except OSError as error:
        raise CheckpointError(
            f'{path} could not be read: {error.strerror or error}') from error


class _Records:
    """The records of a file in torch's zip format, verified by checksums.

    torch's own reader does not verify them.
    """

    def __init__(self, source: _Source) -> None:
        self.source, name = source, source.name
        with _reading(source):
            if not zipfile.is_zipfile(source):  # type: ignore[arg-type]
                raise EOFError('its end is missing; copy or download it again')
            self.archive = zipfile.ZipFile(source)  # type: ignore[arg-type]
            infos = self.archive.infolist()
        self.infos = {info.filename: info for info in infos}
        roots = [n.removesuffix('data.pkl') for n in self.infos
                 if n.count('/') == 1 and n.endswith('/data.pkl')]
        if len(roots) != 1:
            raise DamagedCheckpoint(
                f'{name} is a zip file, but not of torch.save; if it is an '
                'archive, unpack it')
        self.root = roots[0]
        if f'{self.root}constants.pkl' in self.infos:
            raise CheckpointError(
                f'{name} is a TorchScript file, which contains a program; '
                'save its state_dict() instead')
        # This also limits the memory allocated for a small file.
        if len(self.infos) != len(infos) or any(
                i.compress_type != zipfile.ZIP_STORED
                or i.compress_size != i.file_size for i in infos) or sum(
                    i.file_size for i in infos) > source.size:
            raise DamagedCheckpoint(
                f'{name} is damaged: records are duplicate, truncated or '
                'compressed, as torch.save never writes them')
        if not any(info.CRC for info in infos):  # saved without checksums
            for info in infos:
                info.CRC = None  # type: ignore[assignment]

    def read(self, name: str) -> bytes:
        """Read and verify a record."""
        return self.read_tensor(name).numpy().tobytes()

    def read_tensor(self, name: str) -> Tensor:
        """Read and verify a record as bytes, (N, ) uint8."""
        with _reading(self.source):
            if self.root + name not in self.infos:
                raise EOFError(f'its record {name} is missing')
            info = self.infos[self.root + name]
            tensor = torch.empty(info.file_size, dtype=torch.uint8)
            view = memoryview(tensor.numpy())
            record: Any
            with self.archive.open(info) as record:
                for start in range(0, len(view), _CHUNK):
                    part = view[start:start + _CHUNK]
                    if record.readinto(part) != len(part):
                        raise EOFError(f'{name} is truncated')
        return tensor


def load_file(file: PathLike | BinaryIO, map_location: Any = None
              ) -> Any:
    """Read a file of ``torch.save`` or safetensors, without executing it.

    It may contain tensors, plain values and containers, numpy arrays of
    numbers and mmengine's log history. Records of the zip format are verified
    by their checksums.

    Args:
        file (str | PathLike | BinaryIO): A file, or one opened for reading
            bytes.
        map_location (str | torch.device | dict | Callable, optional): As in
            ``torch.load``. Defaults to None, the saved device.

    Returns:
        Any: The content; of safetensors a dict of ``state_dict`` and
        ``meta``, as in mmengine's own files.

    Raises:
        DamagedCheckpoint: If the file is damaged.
        CheckpointError: If it could not be read, is no such file, or contains
            other values.
    """
    if isinstance(file, (str, os.PathLike)):
        with _opened(file) as source:
            return _load(source, map_location)
    name = str(getattr(file, 'name', 'the file'))
    if not (hasattr(file, 'readinto') and file.seekable()) or file.tell():
        file = io.BytesIO(file.read())
    return _load(_Source(file, name), map_location)


def _load(source: _Source, map_location: Any) -> Any:
    name = source.name
    with _reading(source):
        start = source.read(64)
        source.seek(0)
    if start.startswith(_ZIP):
        return _load_zip(source, map_location)
    if start[8:9] == b'{':  # whatever its name is
        return _load_safetensors(source, map_location)
    if not start.strip(b'\0'):
        raise DamagedCheckpoint(
            f'{name} is damaged: it is empty or starts with zeros')
    if start.startswith(b'\x80'):  # PROTO, the first opcode
        return _load_legacy(source, map_location)
    text = start.strip()
    what = next((what for mark, what in _OTHER_FILES.items()
                 if text.startswith(mark)), '')
    if not what and text.isascii() and text.decode().isprintable():
        what = f'is a text file ({text.decode()!r}), not a checkpoint'
    raise DamagedCheckpoint(f'{name} ' + (what or (
        'is neither a file of torch.save nor of safetensors, or it is '
        f'damaged: it starts with {start[:4]!r}')))


def _place(source: _Source, storage: torch.UntypedStorage,
           identity: StorageId, map_location: Any) -> torch.UntypedStorage:
    """Move a storage to its former device, or to ``map_location``."""
    try:
        placed = _get_restore_location(map_location)(
            storage, identity.location)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f'{source.name}: its tensors belong on '
            f'{map_location or identity.location}, which is not available; '
            "read it with map_location='cpu'") from error
    return getattr(placed, '_untyped_storage', placed)


def _load_zip(source: _Source, map_location: Any) -> Any:
    records = _Records(source)
    if f'{records.root}byteorder' in records.infos and (
            records.read('byteorder') != b'little'):
        raise CheckpointError(
            f'{source.name} was saved on a machine with another byte order; '
            'load it with torch and save it again')
    loaded: dict[str, torch.UntypedStorage] = {}

    def storage(identity: StorageId) -> torch.UntypedStorage:
        if identity.key not in loaded:
            data = records.read_tensor(f'data/{identity.key}')
            loaded[identity.key] = _place(
                source, data.untyped_storage(), identity, map_location)
        if loaded[identity.key].nbytes() != identity.nbytes:
            raise ValueError('the length of a storage does not match its type')
        return loaded[identity.key]

    pickled = records.read('data.pkl')
    with _reading(source):
        return unpickle(
            io.BytesIO(pickled), source.name, len(pickled), storage)


def read_pickle(content: bytes, name: str) -> Any:
    """Read a pickle of plain values and numpy arrays.

    Args:
        content (bytes): The pickle.
        name (str): Name of its file, for errors.

    Returns:
        Any: Its value.

    Raises:
        CheckpointError: If it contains other values, or is damaged.
    """
    source = _Source(io.BytesIO(content), name)
    with _reading(source):
        return unpickle(source, name, source.size)


def _load_legacy(source: _Source, map_location: Any) -> Any:
    """Read all pickles, then the storages.

    A single pickle of arrays, as detectron2 writes them, is read, too.
    """
    name, size = source.name, source.size
    storages: dict[str, tuple[StorageId, torch.UntypedStorage]] = {}

    def storage(identity: StorageId) -> torch.UntypedStorage:
        """Allocate a storage, whose data follow the pickle in the file."""
        if identity.key not in storages:
            total = sum(i.nbytes for i, _ in storages.values())
            if total + identity.nbytes > size:
                raise ValueError('storages are missing')
            storages[identity.key] = identity, _place(
                source, torch.UntypedStorage(identity.nbytes), identity,
                map_location)
        return storages[identity.key][1]

    with _reading(source):
        magic = unpickle(source, name, size)
        if isinstance(magic, dict) and source.tell() == size:
            return magic
        if type(magic) is not int or magic != _MAGIC:
            raise CheckpointError(
                f'{name} is a pickle, but not of torch.save')
        version, system = (unpickle(source, name, size) for _ in range(2))
        if version != _VERSION or type(system) is not dict or (
                system.get('little_endian') is not True):
            raise CheckpointError(
                f'{name} is a legacy file of torch of version {version}, or '
                'of another byte order, which is not read')
        content = unpickle(source, name, size, storage)
        keys = unpickle(source, name, size)
        if sorted(keys) != sorted(storages):
            raise ValueError('storages are missing')
        for key in keys:
            identity, placed = storages[key]
            numel, = struct.unpack('<q', source.read(8))
            data = torch.empty(identity.nbytes, dtype=torch.uint8)
            if numel != identity.numel or source.readinto(
                    memoryview(data.numpy())) != len(data):
                raise EOFError('a storage is truncated')
            placed.copy_(data.untyped_storage())
    return content


def _load_safetensors(source: _Source, map_location: Any) -> Any:
    # Not memory-mapped, where a disk error would kill the process.
    with _reading(source):
        data = source.read()
        try:
            state = safetensors.torch.load(data)
        except SafetensorError as error:
            raise DamagedCheckpoint(
                f'{source.name} is not a safetensors file, or damaged: '
                f'{error}') from error
        length, = struct.unpack('<Q', data[:8])
        meta = json.loads(data[8:8 + length]).get('__metadata__') or {}
    if isinstance(map_location, (str, torch.device)):
        state = {k: v.to(map_location) for k, v in state.items()}
    return dict(state_dict=state, meta=meta)


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Read a ``.safetensors`` or pickled file, or a Hugging Face folder.

    Nothing in a pickled file is executed, see :func:`load_file`.

    Args:
        path (str | PathLike): The file, or a folder with
            ``model.safetensors``, its index of several files, or
            ``pytorch_model.bin``.

    Returns:
        Checkpoint: The tensors, on the CPU, without wrappers
        (``state_dict``, ``model``) and without a ``module.`` prefix.

    Raises:
        CheckpointError: If there is no such file, it cannot be read safely, or
            it contains no tensors.
    """
    file = find_checkpoint(path)
    if not file.exists():
        raise CheckpointError(explain_missing(path))
    with prefix_errors(file):
        files = [file]
        if file.name.endswith('.index.json'):
            files = _read_index(file)
        state: StateDict = OrderedDict()
        meta: dict[str, Any] = {}
        for one in files:
            part, meta = _read_file(one)
            twice = sorted(state.keys() & part.keys())
            if twice:
                raise CheckpointError(
                    f'it contains {twice[0]} in two of its files')
            state.update(part)
        for name in _FOLDER_SETTINGS if file.name in WEIGHT_FILES else ():
            if file.with_name(name).is_file():
                meta[name] = _read_json(file.with_name(name))
    return Checkpoint(state, meta)


def _read_index(file: Path) -> list[Path]:
    """Read the names of the files that contain a model."""
    names = _read_json(file).get('weight_map')
    if not isinstance(names, dict) or not names:
        raise DamagedCheckpoint(f'{file} is damaged: it lists no files')
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise DamagedCheckpoint(
                f'{file} is damaged: it names {name!r}, which is no file of '
                'its folder')
    return [file.with_name(name) for name in sorted({*names.values()})]


def _read_file(file: Path) -> Checkpoint:
    with _opened(file) as source:
        content = _load(source, 'cpu')
    found = unwrap(content)
    # Averages of the weights.
    others = [k for k, v in content.items() if k not in _WRAPPERS
              and _contains_tensors(v)
              ] if content.keys() & {*_WRAPPERS} else ()
    if others:
        print_log(f'not loaded: {", ".join(map(str, others))}',
                  logger='current')
    return found


def _contains_tensors(value: Any) -> bool:
    """Whether a value is a dict with tensors."""
    return isinstance(value, dict) and any(
        isinstance(v, (Tensor, np.ndarray)) for v in value.values())


def _flatten(content: dict[Any, Any], prefix: str = ''
             ) -> Iterator[tuple[str, Any]]:
    """Find the tensors in nested dicts; keys become prefixes.

    Only the outermost dicts with tensors are read, no optimizers.
    """
    is_state = _contains_tensors(content)
    for name, value in content.items():
        if is_state and isinstance(value, (Tensor, np.ndarray)):
            if not isinstance(name, str):
                raise CheckpointError(
                    f'it names a tensor {name!r}, which is not a string')
            yield prefix + name, value
        elif not is_state and isinstance(value, dict) and (
                isinstance(name, str) and 'optim' not in name):
            yield from _flatten(value, f'{prefix}{name}.')


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that contains a dict."""
    with _opened(file) as source, _reading(source):
        content = json.loads(source.read())
        if not isinstance(content, dict):
            raise ValueError('no dict')
    return content


def unwrap(content: Any) -> Checkpoint:
    """Find the state dict in the content of a file.

    Args:
        content (Any): A state dict of tensors or numpy arrays, possibly
            nested in other dicts, or several. Their keys, except for
            ``state_dict`` and ``model``, become prefixes: ``teacher`` and
            ``student`` of DINO and iBOT, ``encoder`` and ``target_encoder``
            of I-JEPA.

    Returns:
        Checkpoint: The tensors, without a ``module.`` prefix.

    Raises:
        CheckpointError: If there are none, or a name is not a string.
    """
    meta: Any = {}
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(
                content.get(wrapper), dict):
            meta = content.get('meta')
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(
            f'it contains a {type(content).__name__}, not a state dict')
    state: StateDict = OrderedDict()
    removed = False
    for name, value in _flatten(content):
        short = name.removeprefix('module.')
        removed |= short != name
        if short in state:
            raise CheckpointError(f'it contains {short} under two names')
        state[short] = value if isinstance(value, Tensor) else (
            torch.as_tensor(value))
    if not state:
        raise CheckpointError('it contains no tensors')
    if removed:
        print_log("removed from its names: 'module.'", logger='current')
    if hasattr(content, '_metadata'):
        state._metadata = content._metadata  # type: ignore[attr-defined]
    return Checkpoint(state, meta if isinstance(meta, dict) else {})


def check_complete(path: PathLike) -> None:
    """Check that a checkpoint file is complete, without loading it.

    Args:
        path (str | PathLike): A local file, ``.pth`` or ``.safetensors``.

    Raises:
        DamagedCheckpoint: If it is empty, truncated, or differs from its
            checksums.
        CheckpointError: If there is no such file, or it could not be read.
    """
    with _opened(path) as source:
        with _reading(source):
            is_zip = source.read(4) == _ZIP
            source.seek(0)
        if is_zip:
            records = _Records(source)
            for name in records.infos:
                records.read_tensor(name.removeprefix(records.root))
        else:
            _load(source, 'cpu')


def write_checkpoint(path: PathLike, state: StateDict,
                     meta: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path (str | PathLike): ``.safetensors``, or ``.pth`` for torch's own
            format with ``state_dict`` and ``meta``.
        state (StateDict): The tensors.
        meta (dict[str, Any]): Metadata; in safetensors its values are text.

    Raises:
        CheckpointError: If the suffix is not one of these, or the file cannot
            be written.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in ('.safetensors', '.pth'):
        raise CheckpointError(
            f'{file}: checkpoints are written as .safetensors or .pth')
    # Tensors that share memory are not allowed in safetensors.
    state = {k: v.detach().cpu().contiguous().clone()
             for k, v in state.items()}
    try:
        with atomic_file(file) as opened:
            if file.suffix.lower() == '.pth':
                torch.save(dict(state_dict=state, meta=meta), opened)
            else:
                opened.write(safetensors.torch.save(
                    state, {k: str(v) for k, v in meta.items()}))
    except OSError as error:
        raise CheckpointError(f'{file} {error.strerror}') from error


# Readers of mmengine and other libraries


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read local files in mmengine, without executing their content.

    Args:
        filename (str): A file of ``torch.save`` or safetensors.
        map_location (optional): See ``torch.load``.

    Returns:
        Any: The content, ready to resume, see :func:`ready_to_resume`.

    Raises:
        CheckpointError: See :func:`load_file`.
    """
    return ready_to_resume(load_file(filename, map_location))


def ready_to_resume(content: Any) -> Any:
    """Prepare a runner's checkpoint for mmengine.

    Log histories are rebuilt from plain values. ``meta['config']``, which
    mmengine would execute as Python and never writes, is removed.

    Args:
        content (Any): The content of a file, modified in place.

    Returns:
        Any: The content.
    """
    if isinstance(content, dict):
        hub = content.get('message_hub')
        if isinstance(hub, dict) and isinstance(hub.get('log_scalars'), dict):
            hub['log_scalars'] = {k: from_plain(v) for k, v in
                                  hub['log_scalars'].items()}
        if isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)
    return content


def safe_load(f: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """Replace ``torch.load``; its other arguments are ignored."""
    return load_file(f, map_location)


def load_only_safely() -> None:
    """Enable safe loading in this process.

    Called at the start of commands. Replaces ``torch.load`` by
    :func:`safe_load` for all libraries; mmengine then reads ``.pkl`` and
    ``.yaml`` files as plain values. Child processes load with
    ``weights_only=True``. Messages between processes and data sets in memory
    are still pickled.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    torch.load = torch.serialization.load = safe_load
    register_handler(['pickle', 'pkl'])(SafePickleHandler)
    register_handler(['yaml', 'yml'])(SafeYamlHandler)


class SafePickleHandler(PickleHandler):
    """mmengine's handler of pickles, for plain values and numpy arrays."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read a pickle.

        Raises:
            CheckpointError: If it contains anything else, or is damaged.
        """
        content = file.read()
        name = str(getattr(file, 'name', 'the pickled file'))
        return read_pickle(content, name)


class SafeYamlHandler(YamlHandler):
    """mmengine's handler of YAML, for plain values."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read YAML.

        Raises:
            CheckpointError: If it is not YAML, or contains Python objects.
        """
        kwargs['Loader'] = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
        try:
            return yaml.load(file, **kwargs)
        except yaml.YAMLError as error:
            reason = ' '.join(str(error).split())
            raise CheckpointError(
                f'{getattr(file, "name", "the file")} is not plain YAML: '
                f'{reason}') from error
