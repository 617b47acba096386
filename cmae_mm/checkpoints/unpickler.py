"""Restricted unpickler for tensors and plain values.

:class:`SafeUnpickler` is Python's unpickler with a fixed table of names. Names
in a file are looked up in the table and never imported. Calls in a file run
the function in the table; all other calls raise an error.
"""
import math
import pickle
import posixpath
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler
from torch.storage import TypedStorage

from . import CheckpointError, reject_unsafe

# Former names of modules.
_MODULES = (('__builtin__', 'builtins'), ('numpy.core.', 'numpy._core.'),
            ('pathlib._local', 'pathlib'))
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_MAX_DEPTH, _MAX_VALUES = 100, 50_000_000
# Limit of copied bytes: a multiple of the pickle's size, plus a constant.
_SPARE_BYTES, _GROWTH = 1 << 24, 8
# Marks a log history that to_plain converted.
_PLAIN_HISTORY = 'mmengine.HistoryBuffer'
# The Python implementation, because opcodes cannot be replaced in C's.
_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Name(str):
    """A name from the table; not a value by itself."""

    __slots__ = ()


class StorageId(NamedTuple):
    """A reference to a storage.

    Attributes:
        key (str): Name of the storage in the file.
        location (str): Device from which it was saved.
        numel (int): Number of elements.
        dtype (torch.dtype): Their type.
    """

    key: str
    location: str
    numel: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of the storage in bytes."""
        return self.numel * self.dtype.itemsize


def _check_key(key: Any) -> Any:
    """Check that a key is a scalar or a tuple of scalars.

    Hashing nested tuples can take very long.
    """
    for part in key if type(key) is tuple else (key, ):
        if type(part) not in (*_SCALARS, torch.dtype) and not isinstance(
                part, np.generic):
            raise ValueError(f'a key is a {type(part).__name__}')
    return key


class SafeUnpickler(_Base):
    """Unpickler of tensors and plain values.

    Args:
        source (BinaryIO): The file, at the start of a pickle.
        name (str): Name of the file, for errors.
        size (int): Size of the pickle in bytes, which limits the memory.
        storage (Callable, optional): Function that returns the
            ``UntypedStorage`` of a :class:`StorageId`. Defaults to None,
            storages raise an error.
    """

    dispatch = dict(_Base.dispatch)
    stack: list[Any]

    def __init__(self, source: Any, name: str, size: int,
                 storage: Callable[[StorageId], Any] | None = None) -> None:
        # Strings of Python 2 may contain bytes.
        super().__init__(source, fix_imports=False, encoding='latin1')
        self.name, self.storage = name, storage
        self.left = _SPARE_BYTES + _GROWTH * size
        # Values whose state may follow, by identity.
        self.unset: dict[int, tuple[Any, Callable[..., None]]] = {}

    def charge(self, nbytes: int) -> None:
        """Count bytes that are copied.

        Raises:
            ValueError: If there are far more than in the file.
        """
        self.left -= nbytes
        if self.left < 0:
            raise ValueError('it requests far more memory than its size')

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the table; nothing is imported."""
        for old, new in _MODULES:
            if module == old or old.endswith('.') and module.startswith(old):
                module = new + module[len(old):]
        return self.find(f'{module}.{name}')

    def find(self, name: str) -> Any:
        """Look up a full name."""
        if name in _VALUES:
            return _VALUES[name]
        if name in _CALLS or name in _STORAGES or name in _ARGUMENTS:
            return _Name(name)
        if name in _OTHER_TENSORS:
            raise CheckpointError(
                f'{self.name} holds {_OTHER_TENSORS[name]}, which is not '
                'supported; save its weights as dense tensors of floats')
        reject_unsafe(self.name, name)

    def persistent_load(self, identity: Any) -> TypedStorage:
        """Resolve a reference to a storage."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or (
                identity[0] != 'storage' or self.storage is None
                or identity[5:] not in ((), (None, ))):  # a part of another
            reject_unsafe(
                self.name, 'a reference to something else than a storage')
        _, kind, key, location, numel, *_ = identity
        if type(kind) is not _Name or kind not in _STORAGES:
            raise ValueError(f'a storage of kind {kind}')
        if (type(key), type(location), type(numel)) != (str, str, int) or (
                numel < 0):
            raise ValueError('a storage without name, location or size')
        dtype = _STORAGES[kind]
        storage = self.storage(StorageId(key, location, numel, dtype))
        return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)

    def _call(self) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if type(called) is not _Name or called not in _CALLS:
            reject_unsafe(
                self.name, f'a call of {called}' if type(called) is _Name
                else f'a call of a {type(called).__name__}')
        if type(args) is not tuple:
            raise ValueError(f'{called} takes a tuple of arguments')
        value = _CALLS[called](self, *args)
        if called in _STATES:
            self.unset[id(value)] = value, _STATES[called]
        self.append(value)

    def _set_state(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        _, setter = self.unset.pop(id(value), (None, None))
        if setter is None:
            reject_unsafe(self.name, f'a state for a {type(value).__name__}')
        setter(self, value, state)

    def _add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(_check_key, items))
        else:
            raise ValueError(f'items are added to a {type(target).__name__}')

    def _set_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) not in (dict, OrderedDict, Counter):
            raise ValueError(f'items are set in a {type(target).__name__}')
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_check_key(key)] = value

    def _make_dict(self) -> None:
        self.metastack[-1].append({})
        self._set_items()

    def _make_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(_check_key, items)))

    def _make_bytearray(self) -> None:
        count, = struct.unpack('<Q', self.read(8))
        self.append(bytearray(self.read(count)))

    def _mark_last(self, count: int) -> None:
        """Put a mark before the last values of the stack."""
        items = self.stack[-count:]
        del self.stack[-count:]
        self.metastack.append(self.stack)
        self.stack = items

    def _append_one(self) -> None:
        self._mark_last(1)
        self._add_items()

    def _set_item(self) -> None:
        self._mark_last(2)
        self._set_items()


def _forbidden(opcode: str) -> Callable[[Any], None]:
    return lambda self: reject_unsafe(self.name, f'the pickle opcode {opcode}')


_OPCODES: dict[str, Callable[[Any], None]] = dict(
    REDUCE=SafeUnpickler._call, NEWOBJ=SafeUnpickler._call,
    BUILD=SafeUnpickler._set_state, DICT=SafeUnpickler._make_dict,
    SETITEM=SafeUnpickler._set_item, SETITEMS=SafeUnpickler._set_items,
    APPEND=SafeUnpickler._append_one, APPENDS=SafeUnpickler._add_items,
    ADDITEMS=SafeUnpickler._add_items, FROZENSET=SafeUnpickler._make_frozenset,
    BYTEARRAY8=SafeUnpickler._make_bytearray,
    **{name: _forbidden(name) for name in (
        'INST', 'OBJ', 'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4', 'PERSID',
        'NEXT_BUFFER', 'READONLY_BUFFER')})
SafeUnpickler.dispatch.update(
    {getattr(pickle, name)[0]: step for name, step in _OPCODES.items()})


def unpickle(source: Any, name: str, size: int,
             storage: Callable[[StorageId], Any] | None = None) -> Any:
    """Read one pickle from the position of a file.

    Args:
        source (BinaryIO): See :class:`SafeUnpickler`.
        name (str): See :class:`SafeUnpickler`.
        size (int): See :class:`SafeUnpickler`.
        storage (Callable, optional): See :class:`SafeUnpickler`.

    Returns:
        Any: Its value.

    Raises:
        CheckpointError: If it contains more than tensors and plain values.
        Exception: Any kind, if it is damaged.
    """
    value = SafeUnpickler(source, name, size, storage).load()
    _check_nesting(value, name, {}, 0)
    return value


def _check_nesting(value: Any, name: str, counts: dict[int, int],
                   depth: int) -> int:
    """Count nested values, which a few bytes can repeat endlessly."""
    if type(value) is _Name:
        reject_unsafe(name, value)
    children = value.values() if isinstance(value, dict) else (
        value if type(value) in (list, tuple) else ())
    if not children:
        return 1
    if id(value) not in counts:
        if depth == _MAX_DEPTH:
            raise ValueError('its values are nested too deeply, or in '
                             'themselves')
        count = sum(_check_nesting(child, name, counts, depth + 1)
                    for child in children)
        if count > _MAX_VALUES:
            raise ValueError('it repeats its values without end')
        counts[id(value)] = count
    return counts[id(value)]


# The functions in the table. All arguments after the unpickler come from the
# file.


def _mapping(kind: Callable[[], Any], unpickler: SafeUnpickler,
             *args: Any) -> Any:
    made = kind()
    given = [a for a in args if type(a) is not _Name and a is not None]
    for items in given[:1]:
        unpickler.charge(64 * len(items))
        pairs = items.items() if isinstance(items, dict) else items
        for key, item in pairs:
            made[_check_key(key)] = item
    return made


def _set_metadata(unpickler: SafeUnpickler, value: Any, state: Any) -> None:
    if type(state) is not dict or set(state) - {'_metadata'}:
        reject_unsafe(unpickler.name, 'attributes of an OrderedDict')
    vars(value).update(state)


def _collection(kind: Callable[..., Any], unpickler: SafeUnpickler,
                items: Any = ()) -> Any:
    unpickler.charge(64 * len(items))
    return kind(map(_check_key, items))


def _bytes(unpickler: SafeUnpickler, data: Any = b'',
           encoding: str = 'latin1') -> bytes:
    if type(data) is str and encoding in ('latin1', 'latin-1'):
        data = data.encode('latin-1')
    if type(data) is not bytes:
        raise ValueError(f'bytes in the encoding {encoding}')
    unpickler.charge(len(data))
    return data


def _path(unpickler: SafeUnpickler, *parts: str) -> str:
    unpickler.charge(sum(map(len, parts)))
    return posixpath.join(*parts) if parts else '.'


def _slice(unpickler: SafeUnpickler, *limits: Any) -> slice:
    if any(type(limit) not in (int, type(None)) for limit in limits):
        raise ValueError('a slice has whole numbers')
    return slice(*limits)


def _attribute(unpickler: SafeUnpickler, owner: Any, name: Any) -> Any:
    """Look up a method of a class, which older pickles name in two parts."""
    if type(owner) is not _Name or type(name) is not str:
        reject_unsafe(unpickler.name, 'builtins.getattr')
    return unpickler.find(f'{owner}.{name}')


def _sizes(values: Any) -> tuple[int, ...]:
    if not all(type(v) is int and v >= 0 for v in values):
        raise ValueError('sizes are whole numbers')
    return tuple(values)


def _tensor(unpickler: SafeUnpickler, storage: Any, offset: int, size: Any,
            stride: Any, requires_grad: bool = False, hooks: Any = None,
            *metadata: Any, dtype: torch.dtype | None = None
            ) -> torch.Tensor:
    """Build a view of a storage."""
    if hooks or any(metadata) or type(storage) is not TypedStorage:
        reject_unsafe(
            unpickler.name, 'a tensor with hooks or lazy conjugation')
    size, stride, (offset, ) = map(_sizes, (size, stride, (offset, )))
    untyped = storage._untyped_storage
    flat = torch.empty(0, dtype=dtype or storage.dtype,
                       device=untyped.device).set_(untyped)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= flat.numel():
        raise ValueError('a tensor is larger than its storage')
    if math.prod(size) > flat.numel():
        unpickler.charge(math.prod(size) * flat.itemsize)
    tensor = flat.as_strided(size, stride, offset)
    return tensor.requires_grad_() if requires_grad is True else tensor


def _tensor_v3(unpickler: SafeUnpickler, storage: Any, offset: int, size: Any,
               stride: Any, requires_grad: bool, hooks: Any,
               dtype: torch.dtype, *metadata: Any) -> torch.Tensor:
    return _tensor(unpickler, storage, offset, size, stride, requires_grad,
                   hooks, *metadata, dtype=dtype)


def _parameter(unpickler: SafeUnpickler, data: Any, requires_grad: bool,
               hooks: Any = None, state: Any = None) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor) or hooks or state:
        reject_unsafe(unpickler.name, 'a parameter with hooks or attributes')
    return torch.nn.Parameter(data, requires_grad=requires_grad is True)


def _dtype(unpickler: SafeUnpickler, code: Any, *flags: Any) -> Any:
    """Build a dtype of numbers or text; objects would be pickles again."""
    if type(code) is not str or not re.fullmatch(
            r'[<>|=]?[?a-zA-Z]\d{0,9}', code) or (
                np.dtype(code).kind not in 'biufcSU'):
        reject_unsafe(unpickler.name, f'a numpy array of {code!r}')
    return np.dtype(code, copy=True)  # type: ignore[call-overload]


def _set_byte_order(unpickler: SafeUnpickler, value: Any, state: Any) -> None:
    if any(field is not None for field in state[2:5]):
        raise ValueError('a numpy dtype with fields')
    own = value.__reduce__()[2]
    value.__setstate__((own[0], state[1], *own[2:]))


def _buffer(unpickler: SafeUnpickler, data: Any, dtype: Any,
            shape: Any) -> bytearray:
    """Copy the content of an array of a dtype and shape."""
    if type(data) is str:  # of Python 2
        data = data.encode('latin-1')
    if type(data) not in (bytes, bytearray) or not isinstance(
            dtype, np.dtype) or not dtype.itemsize:
        raise ValueError('a numpy array without numbers')
    if len(data) != math.prod(_sizes(shape)) * dtype.itemsize:
        raise ValueError('a numpy array is not as long as its shape')
    unpickler.charge(len(data))
    return bytearray(data)


def _array(unpickler: SafeUnpickler, data: Any, dtype: Any, shape: Any = (),
           order: str = 'C') -> np.ndarray:
    return np.ndarray(shape, dtype, _buffer(unpickler, data, dtype, shape),
                      order='F' if order == 'F' else 'C')


def _new_array(unpickler: SafeUnpickler, kind: Any, *_: Any) -> np.ndarray:
    if kind != 'numpy.ndarray':
        reject_unsafe(unpickler.name, f'a numpy array of type {kind}')
    return np.empty(0, np.uint8)


def _set_array(unpickler: SafeUnpickler, value: Any, state: Any) -> None:
    _, shape, dtype, fortran, data = state
    data = bytes(_buffer(unpickler, data, dtype, shape))
    value.__setstate__((1, tuple(shape), dtype, bool(fortran), data))


def _set_history(unpickler: SafeUnpickler, value: HistoryBuffer,
                 state: Any) -> None:
    numbers = ('_log_history', '_count_history', 'max_length')
    if type(state) is not dict or set(state) - {
            *numbers, 'statistics_methods', '_statistics_methods'}:
        reject_unsafe(unpickler.name,
                      "a log history of another form than mmengine's")
    _fill_history(value, *(state[k] for k in numbers))


def _fill_history(buffer: HistoryBuffer, log: Any, count: Any,
                  max_length: Any) -> HistoryBuffer:
    """Set the values (N, ) and counts (N, ) of a log history."""
    for array in (log, count):
        if type(array) is not np.ndarray or array.ndim != 1 or (
                array.dtype.kind not in 'fiub'):
            raise ValueError('a log history is not a series of numbers')
    if len(log) != len(count) or type(max_length) is not int:
        raise ValueError('a log history has no length')
    buffer._log_history, buffer._count_history = log, count
    buffer.max_length = max_length
    return buffer


_ORDERED = 'collections.OrderedDict'
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
_NEW_ARRAY = 'numpy._core.multiarray._reconstruct'
# Names that stand for a value: dtypes, and methods that log histories and
# schedulers refer to.
_VALUES: dict[str, Any] = {
    **{str(dtype): dtype for dtype in vars(torch).values()
       if isinstance(dtype, torch.dtype)
       and not str(dtype).startswith(('torch.q', 'torch.bits'))},
    **{f'{_HISTORY}.{name}': getattr(HistoryBuffer, name)
       for name in ('min', 'max', 'current', 'mean')},
    **{f'{_ONE_CYCLE}.{name}': getattr(OneCycleParamScheduler, name)
       for name in ('_annealing_cos', '_annealing_linear')},
}
_STORAGES: dict[str, torch.dtype] = {
    f'torch.{module}{kind}Storage': dtype
    for module in ('', 'storage.', 'cuda.') for kind, dtype in dict(
        Double=torch.float64, Float=torch.float32, Half=torch.float16,
        BFloat16=torch.bfloat16, Long=torch.int64, Int=torch.int32,
        Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool,
        ComplexDouble=torch.complex128, ComplexFloat=torch.complex64,
        Untyped=torch.uint8).items()}
# Names that are arguments of calls in the table.
_ARGUMENTS = {
    'numpy.ndarray', _ONE_CYCLE, 'builtins.list', 'builtins.dict',
    'builtins.int', 'builtins.float', 'builtins.str', 'builtins.tuple'}
_CALLS: dict[str, Callable[..., Any]] = {
    _ORDERED: partial(_mapping, OrderedDict),
    # Milestones of mmengine's MultiStepLR.
    'collections.Counter': partial(_mapping, Counter),
    **dict.fromkeys(('collections.defaultdict',
                     'mmengine.config.config.ConfigDict',
                     'argparse.Namespace'), partial(_mapping, dict)),
    'builtins.getattr': _attribute,
    'builtins.set': partial(_collection, set),
    'builtins.frozenset': partial(_collection, frozenset),
    **dict.fromkeys(('builtins.bytes', '_codecs.encode'), _bytes),
    'builtins.bytearray': lambda u, *args: bytearray(_bytes(u, *args)),
    'builtins.complex': lambda u, *parts: complex(*map(float, parts)),
    'builtins.slice': _slice,
    **{f'pathlib.{pure}{system}Path': _path for pure in ('', 'Pure')
       for system in ('', 'Posix', 'Windows')},
    'torch.Size': lambda u, sizes=(): torch.Size(_sizes(sizes)),
    'torch.device': lambda u, *parts: torch.device(*parts),
    **dict.fromkeys(('torch._utils._rebuild_tensor',
                     'torch._utils._rebuild_tensor_v2'), _tensor),
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    **dict.fromkeys(('torch._utils._rebuild_parameter',
                     'torch._utils._rebuild_parameter_with_state'),
                    _parameter),
    'numpy.dtype': _dtype,
    _NEW_ARRAY: _new_array,
    'numpy._core.multiarray.scalar':
    lambda u, dtype, data: _array(u, data, dtype)[()],
    'numpy._core.numeric._frombuffer': _array,
    _HISTORY: lambda u: HistoryBuffer(),
}
# Functions that set the state after a call.
_STATES: dict[str, Callable[..., None]] = {
    _ORDERED: _set_metadata,
    'argparse.Namespace': lambda u, value, state: value.update(dict(state)),
    'numpy.dtype': _set_byte_order, _NEW_ARRAY: _set_array,
    _HISTORY: _set_history}
# Descriptions of other kinds of tensors.
_OTHER_TENSORS = {
    'torch._utils._rebuild_meta_tensor_no_storage':
    'a meta tensor, which has no values',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor',
    'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
    'torch._utils._rebuild_qtensor': 'a quantised tensor',
}


def to_plain(value: Any) -> Any:
    """Convert a message hub to values without mmengine's classes.

    Args:
        value (Any): ``message_hub`` or ``meta`` of a checkpoint.

    Returns:
        Any: The same, with log histories as dicts of tensors, and numpy's
        scalars and arrays as numbers and tensors.
    """
    if isinstance(value, HistoryBuffer):
        log, count = (torch.from_numpy(np.array(v)) for v in value.data)
        return dict(kind=_PLAIN_HISTORY, log_history=log, count_history=count,
                    max_length=value.max_length)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiub':
        return torch.from_numpy(np.array(value))
    if type(value) in (list, tuple):
        return type(value)(to_plain(v) for v in value)
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((k, to_plain(v)) for k, v in value.items())
    return value


def from_plain(value: Any) -> Any:
    """Rebuild a log history that :func:`to_plain` converted.

    Args:
        value (Any): A value of ``log_scalars`` in a message hub.

    Returns:
        Any: A ``HistoryBuffer``; other values are unchanged.

    Raises:
        ValueError: If the log history is of another form.
    """
    if not isinstance(value, dict) or value.get('kind') != _PLAIN_HISTORY:
        return value
    log, count = (value[f'{k}_history'].cpu().numpy() for k in (
        'log', 'count'))
    return _fill_history(HistoryBuffer(), log, count, value['max_length'])
