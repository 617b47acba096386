"""torch's two file formats, read without running what is in them."""
import io
import mmap
import os
import struct
import sys
from typing import Any, BinaryIO, Callable, Dict, Optional, Union

import torch

from .array_builders import STORAGES
from .errors import CheckpointError
from .plain_values import Storage, Symbol
from .safe_pickle import read_pickle
from .zip_records import ZipRecords, damaged_if_unreadable

MapLocation = Optional[Union[str, torch.device, Dict[str, str],
                             Callable[[Any, str], Any]]]
# torch's legacy format begins with these numbers.
_MAGIC, _VERSION = 0x1950a86a20f9469cfc6c, 1001
_ZIP = b'PK\x03\x04'


def load_file(file: Union[str, os.PathLike, BinaryIO],
              map_location: MapLocation = None) -> Any:
    """Read what ``torch.save`` wrote, as ``torch.load`` would.

    Nothing in the file is run: it may hold tensors, plain values and
    containers, numpy arrays of numbers and mmengine's log history. Of the zip
    format every record that is read is compared with its checksum.

    Args:
        file (str | os.PathLike | BinaryIO): A file, or one opened for reading
            bytes.
        map_location (str | torch.device | dict | Callable, optional): As in
            ``torch.load``. Defaults to None, where the tensors were.

    Returns:
        Any: What was saved.

    Raises:
        CheckpointError: If the file is damaged, no file of torch, or holds
            more than the above.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return _load(opened, str(file), map_location)
    name = str(getattr(file, 'name', 'the file'))
    if not (hasattr(file, 'readinto') and file.seekable()) or file.tell():
        file = io.BytesIO(file.read())
    return _load(file, name, map_location)


def _load(file: BinaryIO, name: str, map_location: MapLocation) -> Any:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(262)
    file.seek(0)
    place = _Placement(name, map_location)
    if start.startswith(_ZIP):
        value = _load_zip(ZipRecords(file, name), place)
    elif not start.strip(b'\0'):
        raise CheckpointError(
            f'{name} is damaged: it is empty, or starts with zeros')
    elif start[257:] == b'ustar':
        raise CheckpointError(
            f'{name} is in the tar format of torch before 0.1.10, which is '
            'not read; load it with torch and save it again')
    elif not start.startswith(b'\x80'):  # PROTO, the first opcode
        raise CheckpointError(
            f'{name} is no file that torch.save wrote, or it is damaged: it '
            f'begins with {start[:4]!r}')
    else:
        with _ReadOnly(file) as source:
            value = _load_legacy(source, size, place)
    if type(value) is Storage:
        return torch.storage.TypedStorage(
            wrap_storage=value.flat.untyped_storage(),
            dtype=value.flat.dtype,
            _internal=True)
    return value


class _ReadOnly:
    """A file whose reads never return more than there is."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.mapped: Optional[mmap.mmap] = None

    def __enter__(self) -> Any:
        if isinstance(self.file, io.BytesIO):
            return self.file
        try:
            self.mapped = mmap.mmap(
                self.file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, AttributeError):  # not a real file
            return io.BytesIO(self.file.read())
        return self.mapped

    def __exit__(self, *_: Any) -> None:
        if self.mapped is not None:
            self.mapped.close()


class _Placement:
    """Puts storages where they were, or where the caller wants them."""

    def __init__(self, name: str, map_location: MapLocation) -> None:
        self.name = name
        self.map_location = map_location

    def __call__(self, data: torch.Tensor, location: str) -> torch.Tensor:
        """Move bytes, (N, ) uint8, from the CPU to their place."""
        wanted = self.map_location
        if isinstance(wanted, dict):
            wanted = wanted.get(location, location)
        elif callable(wanted):
            placed = wanted(data.untyped_storage(), location)
            if placed is not None:
                placed = getattr(placed, '_untyped_storage', placed)
                return torch.empty(0, dtype=torch.uint8,
                                   device=placed.device).set_(placed)
            wanted = None
        if isinstance(wanted, bytes):
            wanted = wanted.decode('ascii')
        wanted = location if wanted is None else wanted
        try:
            return data.to(wanted)
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            raise CheckpointError(
                f'{self.name}: its tensors belong on {wanted}, which is not '
                "here; read it with map_location='cpu'") from error


def _storage_id(identity: Any, length: int) -> tuple:
    """Take a persistent id apart: dtype, key, location, number, rest."""
    if type(identity) is not tuple or len(identity) != length or (
            identity[0] != 'storage'):
        raise ValueError('a reference to something else than a storage')
    _, kind, key, location, numel, *rest = identity
    modules = ('torch', 'torch.storage', 'torch.cuda')
    if type(kind) is not Symbol or kind.module not in modules or (
            kind.name not in STORAGES):
        raise ValueError(f'a storage of kind {kind}')
    if type(key) is not str or type(location) is not str or (
            type(numel) is not int or numel < 0):
        raise ValueError('a storage without name, place or size')
    return (STORAGES[kind.name], key, location, numel, *rest)


def _load_zip(records: ZipRecords, place: _Placement) -> Any:
    order = records.read('byteorder') if 'byteorder' in records else b'little'
    if order not in (b'little', b'big'):
        raise CheckpointError(f'{place.name} is damaged: byte order {order!r}')
    loaded: Dict[str, torch.Tensor] = {}

    def storage(identity: Any) -> Storage:
        dtype, key, location, numel = _storage_id(identity, 5)
        if key not in loaded:
            data = records.read_tensor(f'data/{key}')
            if order.decode() != sys.byteorder:
                data.untyped_storage().byteswap(dtype)
            loaded[key] = place(data, location)
        data = loaded[key]
        if data.numel() != numel * dtype.itemsize:
            raise ValueError(f'data/{key} has another size than it says')
        return Storage(data.view(dtype))

    pickled = records.read('data.pkl')
    return read_pickle(
        io.BytesIO(pickled), place.name, len(pickled), storage)


def _load_legacy(source: BinaryIO, size: int, place: _Placement) -> Any:
    """Read pickles, one after the other, then the storages."""
    name = place.name
    if read_pickle(source, name, size) != _MAGIC:
        raise CheckpointError(
            f'{name} is a pickle, but none that torch.save wrote')
    version = read_pickle(source, name, size)
    system = read_pickle(source, name, size)
    if version != _VERSION or not isinstance(system, dict) or (
            system.get('little_endian') is not True):
        raise CheckpointError(
            f'{name} is a legacy file of torch of version {version}, or of '
            'another byte order, which is not read')
    storages: Dict[str, torch.Tensor] = {}
    sizes: Dict[str, int] = {}

    def storage(identity: Any) -> Storage:
        dtype, key, location, numel, view = _storage_id(identity, 6)
        if key not in storages:
            sizes[key] = numel * dtype.itemsize
            if sum(sizes.values()) > size:
                raise ValueError('its storages are larger than the file')
            storages[key] = place(
                torch.empty(sizes[key], dtype=torch.uint8), location)
        flat = storages[key][:numel * dtype.itemsize].view(dtype)
        if view is not None:
            _, offset, numel = view
            flat = flat[offset:offset + numel]
        return Storage(flat)

    value = read_pickle(source, name, size, storage)
    keys = read_pickle(source, name, size)
    with damaged_if_unreadable(name):
        if sorted(keys) != sorted(storages):
            raise ValueError('storages are missing')
        for key in keys:
            _fill(storages[key], sizes[key], source)
    return value


def _fill(data: torch.Tensor, num_bytes: int, source: BinaryIO) -> None:
    """Read the elements of a storage, after their number."""
    numel, = struct.unpack('<q', source.read(8))
    # Of how many bytes an element is follows from the two.
    if (num_bytes % numel if numel > 0 else num_bytes or numel):
        raise ValueError('a storage has another size than it says')
    content = bytearray(source.read(num_bytes))
    if len(content) != num_bytes:
        raise EOFError('a storage ends too early')
    if content:
        data.copy_(torch.frombuffer(content, dtype=torch.uint8))
