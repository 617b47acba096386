"""Pickles read as plain values: nothing that they name is imported or called.

:func:`unpickle` is Python's own unpickler, made to keep names as text and
calls as inert records. :class:`Builder` makes values of the records that its
table lists, with functions of its own, and refuses all others.
"""
import math
import pickle
import posixpath
import re
import struct
from collections import Counter, OrderedDict
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch.storage import TypedStorage

from .errors import CheckpointError

# Old names of the same modules.
_MODULES = (('__builtin__', 'builtins'), ('numpy.core.', 'numpy._core.'),
            ('pathlib._local', 'pathlib'))
# How a plain log history is known.
_KIND = 'mmengine.HistoryBuffer'
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_MAX_DEPTH, _MAX_VALUES = 100, 50_000_000
# What a pickle may make by copying, beyond a multiple of its own size.
_SPARE_BYTES, _GROWTH = 1 << 24, 8
_DTYPES = {
    str(dtype): dtype for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
    and not str(dtype).startswith(('torch.q', 'torch.bits'))
}
_STORAGES = dict(zip(
    ('Double', 'Float', 'Half', 'BFloat16', 'Long', 'Int', 'Short', 'Char',
     'Byte', 'Bool', 'ComplexDouble', 'ComplexFloat', 'Untyped'),
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
     torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
     torch.complex128, torch.complex64, torch.uint8)))


# In Python: each step can be replaced, which C's does not allow.
_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Name(str):
    """A name in a file: text that is compared, and never looked up."""

    __slots__ = ()


class _Record:
    """A call in a file that is not made, and what the file adds to it."""

    __slots__ = ('name', 'args', 'items', 'state')

    def __init__(self, name: str, args: Tuple[Any, ...]) -> None:
        self.name, self.args, self.state = name, args, None
        self.items: List[Tuple[Any, Any]] = []


class StorageId:
    """What a file says of a storage, in a persistent id."""

    def __init__(self, kind: _Name, key: str, location: str, numel: int,
                 view: Any = None) -> None:
        name = re.fullmatch(r'torch\.(storage\.|cuda\.)?(\w+)Storage', kind)
        if type(kind) is not _Name or not name or name[2] not in _STORAGES:
            raise ValueError(f'a storage of kind {kind}')
        if (type(key), type(location), type(numel)) != (str, str, int) or (
                numel < 0):
            raise ValueError('a storage without name, place or size')
        self.key, self.location, self.numel = key, location, numel
        # Of the legacy format: key, offset and length of a part.
        self.view = view
        self.dtype = _STORAGES[name[2]]
        self.nbytes = numel * self.dtype.itemsize


def refuse(name: str, what: Any) -> NoReturn:
    """Refuse what is no plain value.

    Raises:
        CheckpointError: Always.
    """
    text = str(what)[:200]
    text = text if text.isprintable() else ascii(text)
    raise CheckpointError(
        f'{name} holds {text}, which is more than tensors and plain '
        'values, and reading it could run code that is in the file, so it '
        'is refused; if you trust its origin, load it once in a script of '
        "your own with torch.load(..., weights_only=False) and save its "
        "'state_dict' alone")


def _check_key(key: Any) -> Any:
    """Check that hashing a key takes no time."""
    for part in key if type(key) is tuple else (key, ):
        if type(part) not in (*_SCALARS, _Name, _Record, torch.dtype) and (
                not isinstance(part, np.generic)):
            raise ValueError(f'a key is a {type(part).__name__}')
    return key


class _Unpickler(_Base):
    """Python's unpickler, which makes no call and looks nothing up."""

    dispatch = dict(_Base.dispatch)
    stack: List[Any]

    def __init__(self, source: Any, name: str) -> None:
        # Strings of Python 2 hold bytes, too.
        super().__init__(source, fix_imports=False, encoding='latin1')
        self.name = name
        self.storages: List[StorageId] = []

    def find_class(self, module: str, name: str) -> Any:
        for old, new in _MODULES:
            if module == old or old.endswith('.') and module.startswith(old):
                module = new + module[len(old):]
        full = f'{module}.{name}'
        return _DTYPES.get(full, _Name(full))

    def persistent_load(self, identity: Any) -> StorageId:
        if type(identity) is not tuple or len(identity) not in (5, 6) or (
                identity[0] != 'storage'):
            refuse(self.name, 'a reference to something else than a storage')
        if type(identity[1]) is _Name and '.Q' in identity[1]:  # quantised
            refuse(self.name, identity[1])
        self.storages.append(StorageId(*identity[1:]))
        return self.storages[-1]

    def call(self) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if type(called) is not _Name:
            refuse(self.name, f'a call of a {type(called).__name__}')
        if type(args) is not tuple:
            raise ValueError(f'{called} takes a tuple of arguments')
        if called in _BUILDERS:
            self.append(_Record(called, args))
        elif called == 'builtins.getattr' and len(args) == 2 and (
                type(args[0]) is _Name and args[0].startswith(_HISTORY)):
            # The log history names its statistics, which are never called.
            self.append(_Name(f'{args[0]}.{args[1]:.100}'))
        else:
            refuse(self.name, _OTHER_TENSORS.get(called, called))

    def set_state(self) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if type(record) is not _Record or record.name not in _WITH_STATE:
            what = getattr(record, 'name', record)
            refuse(self.name, 'a state for ' + (
                what if type(what) is _Name else type(what).__name__))
        if record.state is not None:
            raise ValueError(f'{record.name} gets a second state')
        record.state = state

    def add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(_check_key, items))
        else:
            raise ValueError(f'items are added to a {type(target).__name__}')

    def set_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        pairs = [(_check_key(key), value) for key, value in
                 zip(items[::2], items[1::2], strict=True)]
        if type(target) is _Record and target.name in _MAPPINGS:
            target.items += pairs
        elif type(target) is dict:
            target.update(pairs)
        else:
            raise ValueError(f'items are set in a {type(target).__name__}')

    def make_dict(self) -> None:
        self.metastack[-1].append({})
        self.set_items()

    def make_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(_check_key, items)))

    def make_bytearray(self) -> None:
        count, = struct.unpack('<Q', self.read(8))
        self.append(bytearray(self.read(count)))

    def mark_last(self, count: int) -> None:
        """Put a mark before the last values of the stack."""
        items = self.stack[-count:]
        del self.stack[-count:]
        self.metastack.append(self.stack)
        self.stack = items

    def append_one(self) -> None:
        self.mark_last(1)
        self.add_items()

    def set_item(self) -> None:
        self.mark_last(2)
        self.set_items()


def _forbidden(opcode: str) -> Callable[[Any], None]:
    return lambda self: refuse(self.name, f'the pickle opcode {opcode}')


_STEPS: Dict[str, Callable[[Any], None]] = dict(
    REDUCE=_Unpickler.call, NEWOBJ=_Unpickler.call,
    BUILD=_Unpickler.set_state, DICT=_Unpickler.make_dict,
    SETITEM=_Unpickler.set_item, SETITEMS=_Unpickler.set_items,
    APPEND=_Unpickler.append_one, APPENDS=_Unpickler.add_items,
    ADDITEMS=_Unpickler.add_items, FROZENSET=_Unpickler.make_frozenset,
    BYTEARRAY8=_Unpickler.make_bytearray,
    **{name: _forbidden(name) for name in (
        'INST', 'OBJ', 'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4', 'PERSID',
        'NEXT_BUFFER', 'READONLY_BUFFER')})
_Unpickler.dispatch.update(
    {getattr(pickle, name)[0]: step for name, step in _STEPS.items()})


def unpickle(source: Any, name: str) -> Tuple[Any, List[StorageId]]:
    """Read one pickle, from where the source stands.

    Args:
        source (BinaryIO): The file, which never gives more than there is.
        name (str): Name of the file, for errors.

    Returns:
        Tuple[Any, List[StorageId]]: What :class:`Builder` builds, and the
        storages that it refers to.

    Raises:
        CheckpointError: If it asks for more than the builder has.
        Exception: All sorts, if it is damaged.
    """
    unpickler = _Unpickler(source, name)
    return unpickler.load(), unpickler.storages


class Builder:
    """Builds plain values, tensors and arrays of what :func:`unpickle` gives.

    Args:
        name (str): Name of the file, for errors.
        size (int): Its size in bytes, which bounds what is built.
        storage (Callable, optional): Function that gives the
            ``UntypedStorage`` of a :class:`StorageId`. Defaults to None:
            storages are refused.
    """

    def __init__(self, name: str, size: int,
                 storage: Optional[Callable[[StorageId], Any]] = None) -> None:
        self.name, self.storage = name, storage
        self.left = _SPARE_BYTES + _GROWTH * size
        # Values by the identity of what they are built of, and their number.
        self.done: Dict[int, Tuple[Any, int]] = {}
        self.depth = self.count = 0

    def charge(self, nbytes: int) -> None:
        """Count what is made by copying.

        Raises:
            ValueError: If it is far more than the file holds.
        """
        self.left -= nbytes
        if self.left < 0:
            raise ValueError('it asks for far more memory than it holds data')

    def build(self, value: Any) -> Any:
        """Build a value.

        Raises:
            CheckpointError: If it is none that may stand in a checkpoint.
            ValueError: If it holds itself, or holds the same so often that
                walking it would not end.
        """
        self.count += 1
        if type(value) in _SCALARS:
            return value
        before = self.count
        if id(value) in self.done:
            built, count = self.done[id(value)]
            self.count += count
        else:
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise ValueError('its values are nested too deeply, or in '
                                 'themselves')
            built = self._make(value)
            self.depth -= 1
            self.done[id(value)] = built, self.count - before
        if self.count > _MAX_VALUES:
            raise ValueError('it repeats its values without end')
        return built

    def _make(self, value: Any) -> Any:
        kind = type(value)
        if kind is _Record:
            # A name tells a kind, to those that take one.
            args = [a if type(a) is _Name else self.build(a)
                    for a in value.args]
            return _BUILDERS[value.name](self, value, *args)
        if kind is dict:
            return {_check_key(self.build(k)): self.build(v)
                    for k, v in value.items()}
        if kind in (list, tuple):
            return kind([self.build(v) for v in value])
        if kind in (set, frozenset):
            return kind(_check_key(self.build(v)) for v in value)
        if kind is StorageId and self.storage is not None:
            storage = self.storage(value)
            return TypedStorage(
                wrap_storage=storage, dtype=value.dtype, _internal=True)
        if kind not in (bytearray, torch.dtype):
            refuse(self.name, value if kind is _Name else f'a bare {kind}')
        return value


# What is built in the place of each call. All arguments come from the file.


def _mapping(builder: Builder, record: _Record, *args: Any) -> Dict[Any, Any]:
    kind = {_ORDERED: OrderedDict, _COUNTER: Counter}.get(record.name, dict)
    given = [a for a in args if type(a) is not _Name and a is not None]
    made: Any = kind()
    for items in given[:1]:
        builder.charge(64 * len(items))
        pairs = items.items() if isinstance(items, dict) else items
        for key, item in pairs:
            made[_check_key(key)] = item
    for key, item in record.items:
        made[_check_key(builder.build(key))] = builder.build(item)
    if record.state is not None:
        if kind is dict or type(record.state) is not dict or (
                set(record.state) - {'_metadata'}):
            refuse(builder.name, f'attributes of a {record.name}')
        vars(made).update(builder.build(record.state))
    return made


def _namespace(builder: Builder, record: _Record) -> Dict[str, Any]:
    return dict(builder.build(record.state))


def _collection(builder: Builder, record: _Record, items: Any = ()) -> Any:
    builder.charge(64 * len(items))
    return (set if record.name.endswith('.set') else frozenset)(
        map(_check_key, items))


def _bytes(builder: Builder, record: _Record, data: Any = b'',
           encoding: str = 'latin1') -> Any:
    if type(data) is str and encoding in ('latin1', 'latin-1'):
        data = data.encode('latin-1')
    if type(data) is not bytes:
        raise ValueError(f'bytes in the encoding {encoding}')
    builder.charge(len(data))
    return bytearray(data) if record.name.endswith('bytearray') else data


def _path(builder: Builder, record: _Record, *parts: str) -> str:
    builder.charge(sum(map(len, parts)))
    return posixpath.join(*parts) if parts else '.'


def _slice(builder: Builder, record: _Record, *limits: Any) -> slice:
    if any(type(limit) not in (int, type(None)) for limit in limits):
        raise ValueError('a slice has whole numbers')
    return slice(*limits)


def _sizes(values: Any) -> Tuple[int, ...]:
    if not all(type(v) is int and v >= 0 for v in values):
        raise ValueError('sizes are whole numbers')
    return tuple(values)


def _tensor(builder: Builder, record: _Record, storage: Any, offset: int,
            size: Any, stride: Any, requires_grad: bool = False,
            hooks: Any = None, *more: Any) -> torch.Tensor:
    """Build a view of a storage; ``more`` is dtype (v3) and metadata."""
    dtype, *metadata = more if record.name.endswith('v3') else (
        storage.dtype, *more)
    if hooks or any(metadata) or type(storage) is not TypedStorage:
        refuse(builder.name, 'a tensor with hooks or lazy conjugation')
    size, stride, (offset, ) = map(_sizes, (size, stride, (offset, )))
    untyped = storage._untyped_storage
    flat = torch.empty(0, dtype=dtype, device=untyped.device).set_(untyped)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= flat.numel():
        raise ValueError('a tensor is larger than its storage')
    if math.prod(size) > flat.numel():
        builder.charge(math.prod(size) * dtype.itemsize)
    tensor = flat.as_strided(size, stride, offset)
    return tensor.requires_grad_() if requires_grad is True else tensor


def _parameter(builder: Builder, record: _Record, data: Any,
               requires_grad: bool, hooks: Any = None, state: Any = None
               ) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor) or hooks or state:
        refuse(builder.name, 'a parameter with hooks or attributes')
    return torch.nn.Parameter(data, requires_grad=requires_grad is True)


def _dtype(builder: Builder, record: _Record, code: Any,
           *flags: Any) -> Any:
    """Build a dtype of numbers or text; objects would be pickles again."""
    if type(code) is not str or not re.fullmatch(
            r'[<>|=]?[?a-zA-Z]\d{0,9}', code) or (
                np.dtype(code).kind not in 'biufcSU'):
        refuse(builder.name, f'a numpy array of {code!r}')
    state: Any = record.state or (3, '=')
    if any(field is not None for field in state[2:5]):
        raise ValueError('a numpy dtype with fields')
    return np.dtype(code).newbyteorder(state[1])


def _array(builder: Builder, data: Any, dtype: Any, shape: Any,
           order: str = 'C') -> np.ndarray:
    if type(data) is str:  # of Python 2
        data = data.encode('latin-1')
    if type(data) not in (bytes, bytearray) or not isinstance(
            dtype, np.dtype) or not dtype.itemsize:
        raise ValueError('a numpy array without numbers')
    if len(data) != math.prod(_sizes(shape)) * dtype.itemsize:
        raise ValueError('a numpy array is not as long as it says')
    builder.charge(len(data))
    return np.ndarray(shape, dtype, bytearray(data), order=(
        'F' if order == 'F' else 'C'))


def _new_array(builder: Builder, record: _Record, kind: Any,
               *_: Any) -> np.ndarray:
    if kind != 'numpy.ndarray':
        refuse(builder.name, f'a numpy array of type {kind}')
    _, shape, dtype, fortran, data = builder.build(record.state)
    array = _array(builder, data, dtype, shape, 'F' if fortran else 'C')
    # numpy itself turns it into the machine's byte order.
    return array.astype(array.dtype.newbyteorder('='), copy=False)


def _history(builder: Builder, record: _Record) -> HistoryBuffer:
    """Build a log history of its numbers, without its statistics."""
    numbers = ('_log_history', '_count_history', 'max_length')
    state = record.state
    if type(state) is not dict or set(state) - {
            *numbers, 'statistics_methods', '_statistics_methods'}:
        refuse(builder.name, "a log history of another form than mmengine's")
    return make_history(*(builder.build(state[k]) for k in numbers))


def make_history(log: Any, count: Any, max_length: Any) -> HistoryBuffer:
    """Make a log history of what a file says of it.

    Args:
        log (np.ndarray): The values, (N, ).
        count (np.ndarray): How often each counts, (N, ).
        max_length (int): How many values are kept.

    Raises:
        ValueError: If these are no numbers of one length.
    """
    for array in (log, count):
        if type(array) is not np.ndarray or array.ndim != 1 or (
                array.dtype.kind not in 'fiub'):
            raise ValueError('a log history is no series of numbers')
    if len(log) != len(count) or type(max_length) is not int:
        raise ValueError('a log history has no length')
    buffer = HistoryBuffer()
    buffer._log_history, buffer._count_history = log, count
    buffer.max_length = max_length
    return buffer


_ORDERED = 'collections.OrderedDict'
# Milestones of mmengine's MultiStepLR.
_COUNTER = 'collections.Counter'
_MAPPINGS = (_ORDERED, _COUNTER, 'collections.defaultdict',
             'mmengine.config.config.ConfigDict')
_NEW_ARRAY = 'numpy._core.multiarray._reconstruct'
_WITH_STATE = (_ORDERED, 'argparse.Namespace', 'numpy.dtype', _NEW_ARRAY,
               _HISTORY)
_BUILDERS: Dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_MAPPINGS, _mapping),
    'argparse.Namespace': _namespace,
    **dict.fromkeys(('builtins.set', 'builtins.frozenset'), _collection),
    **dict.fromkeys(('builtins.bytes', 'builtins.bytearray',
                     '_codecs.encode'), _bytes),
    'builtins.complex': lambda b, r, *parts: complex(*map(float, parts)),
    'builtins.slice': _slice,
    **{f'pathlib.{pure}{system}Path': _path for pure in ('', 'Pure')
       for system in ('', 'Posix', 'Windows')},
    'torch.Size': lambda b, r, sizes=(): torch.Size(_sizes(sizes)),
    'torch.device': lambda b, r, *parts: torch.device(*parts),
    **{f'torch._utils._rebuild_{kind}': _tensor
       for kind in ('tensor', 'tensor_v2', 'tensor_v3')},
    **{f'torch._utils._rebuild_{kind}': _parameter
       for kind in ('parameter', 'parameter_with_state')},
    'numpy.dtype': _dtype,
    _NEW_ARRAY: _new_array,
    'numpy._core.multiarray.scalar':
    lambda b, r, dtype, data: _array(b, data, dtype, ())[()],
    'numpy._core.numeric._frombuffer':
    lambda b, r, data, dtype, shape, order: _array(
        b, data, dtype, shape, order),
    _HISTORY: _history,
}
# Tensors of other kinds, in words for people.
_OTHER_TENSORS = {
    'torch._utils._rebuild_meta_tensor_no_storage':
    'a meta tensor, which has no values',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor',
    'torch.serialization._get_layout': 'a sparse tensor',
}


def to_plain(value: Any) -> Any:
    """Make what a message hub holds readable without its classes.

    Args:
        value (Any): ``message_hub`` or ``meta`` of a checkpoint.

    Returns:
        Any: The same, with log histories as dicts of tensors, and numpy's
        scalars and arrays as numbers and tensors.
    """
    if isinstance(value, HistoryBuffer):
        log, count = (torch.from_numpy(np.array(v)) for v in value.data)
        return dict(kind=_KIND, log_history=log, count_history=count,
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
    """Rebuild a log history that :func:`to_plain` made plain.

    Args:
        value (Any): Of ``log_scalars`` in a message hub.

    Returns:
        Any: A ``HistoryBuffer``; other values as they are.

    Raises:
        ValueError: If the log history is of another form.
    """
    if not isinstance(value, dict) or value.get('kind') != _KIND:
        return value
    log, count = (value[f'{k}_history'].cpu().numpy() for k in (
        'log', 'count'))
    return make_history(log, count, value['max_length'])
