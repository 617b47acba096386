"""What may stand in a checkpoint, and how it is built from inert parts.

Every function here gets values that were read from a file, and checks them.
"""
import posixpath
import re
from collections import OrderedDict
from typing import Any, Callable, Dict, List, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .log_history import STATE_KEYS, fill_log_history

# Old names of the same modules.
_MODULES = (('__builtin__', 'builtins'), ('numpy.core.', 'numpy._core.'),
            ('pathlib._local', 'pathlib'))


class Symbol(NamedTuple):
    """A name in a file: text that is compared, and never looked up."""

    module: str
    name: str

    @classmethod
    def of(cls, module: str, name: str) -> 'Symbol':
        """Give a name under today's name of its module."""
        for old, new in _MODULES:
            if module == old or old.endswith('.') and module.startswith(old):
                module = new + module[len(old):]
        return cls(module, name)

    def __str__(self) -> str:
        return f'{self.module}.{self.name}'


class Storage(NamedTuple):
    """The elements of a storage, which tensors are views of."""

    flat: torch.Tensor


class _DType:
    """A numpy dtype whose byte order is told after its kind."""

    def __init__(self, code: str) -> None:
        self.value = np.dtype(code)


class _Settings(dict):
    """An ``argparse.Namespace``, read as a dict."""


def _symbols(module: str, table: Dict[str, Any]) -> Dict[Symbol, Any]:
    return {Symbol(module, name): value for name, value in table.items()}


_DTYPES = {
    str(dtype).removeprefix('torch.'): dtype
    for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
}
STORAGES: Dict[str, torch.dtype] = dict(
    DoubleStorage=torch.float64,
    FloatStorage=torch.float32,
    HalfStorage=torch.float16,
    BFloat16Storage=torch.bfloat16,
    LongStorage=torch.int64,
    IntStorage=torch.int32,
    ShortStorage=torch.int16,
    CharStorage=torch.int8,
    ByteStorage=torch.uint8,
    BoolStorage=torch.bool,
    ComplexDoubleStorage=torch.complex128,
    ComplexFloatStorage=torch.complex64,
    UntypedStorage=torch.uint8)
CONSTANTS: Dict[Symbol, Any] = _symbols('torch', _DTYPES)

_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_LEAVES = (*_SCALARS, bytearray, torch.Tensor, torch.nn.Parameter,
           torch.device, torch.dtype, torch.Size, np.ndarray, HistoryBuffer,
           slice)
_MAX_DEPTH, _MAX_VALUES = 200, 50_000_000


def check_key(key: Any) -> Any:
    """Check that a value can be a key: plain, or a tuple of plain ones.

    Raises:
        ValueError: If it is anything else; hashing it could take forever.
    """
    parts = key if type(key) is tuple else (key, )
    for part in parts:
        if type(part) not in _SCALARS and not isinstance(
                part, (np.generic, torch.dtype)):
            raise ValueError(f'a key is a {type(part).__name__}')
    return key


def check_plain(value: Any, refuse: Callable[[Any], None]) -> None:
    """Check that a value is made of known things, and is a finite tree.

    Args:
        value (Any): What was read; a storage may stand alone.
        refuse (Callable): Raises an error that names what stands in it.

    Raises:
        ValueError: If it holds itself, or holds the same so often that
            walking it would not end.
    """
    sizes: Dict[int, int] = {}  # of finished containers, all parts counted
    path: List[int] = []
    todo = [] if type(value) is Storage else [(value, False)]
    while todo:
        item, finished = todo.pop()
        if finished:
            parts = _parts(item, refuse)
            sizes[id(item)] = 1 + sum(sizes.get(id(p), 1) for p in parts)
            path.pop()
            if sizes[id(item)] > _MAX_VALUES:
                raise ValueError('it repeats its values without end')
            continue
        parts = _parts(item, refuse)
        if not parts or id(item) in sizes:
            continue
        if len(path) > _MAX_DEPTH:
            raise ValueError('its values are nested too deeply, or in '
                             'themselves')
        path.append(id(item))
        todo.append((item, True))
        todo += [(p, False) for p in parts]


def _parts(item: Any, refuse: Callable[[Any], None]) -> List[Any]:
    """Give what stands in a container, nothing for other plain values."""
    kind = type(item)
    if kind in (dict, OrderedDict, _Settings):
        parts = [*item.values(), *vars(item).values()] if (
            kind is not dict) else list(item.values())
        return parts
    if kind in (list, tuple):
        return list(item)
    if kind in (set, frozenset) or kind in _LEAVES or isinstance(
            item, np.generic):
        return []
    refuse(item if kind is Symbol else f'a bare {kind.__name__}')
    return []


def _ints(values: Any) -> tuple:
    if not all(type(v) is int and v >= 0 for v in values):
        raise ValueError('sizes are whole numbers')
    return tuple(values)


# Python


def _ordered_dict(machine: Any, items: Any = ()) -> OrderedDict:
    machine.charge(64 * len(items))
    return OrderedDict((check_key(k), v) for k, v in items)


def _as_set(kind: type) -> Callable[..., Any]:

    def build(machine: Any, items: Any = ()) -> Any:
        machine.charge(64 * len(items))
        return kind(map(check_key, items))

    return build


def _encode(machine: Any, text: str = '', encoding: str = 'latin1') -> bytes:
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise ValueError(f'bytes in the encoding {encoding}')
    machine.charge(len(text))
    return text.encode('latin-1')


def _bytearray(machine: Any, data: Any = b'', *encoding: Any) -> bytearray:
    if encoding:
        data = _encode(machine, data, *encoding)
    if type(data) is not bytes:
        raise ValueError('a bytearray is made of bytes')
    machine.charge(len(data))
    return bytearray(data)


def _complex(machine: Any, real: float, imag: float) -> complex:
    return complex(float(real), float(imag))


def _slice(machine: Any, *limits: Any) -> slice:
    if any(type(limit) not in (int, type(None)) for limit in limits):
        raise ValueError('a slice has whole numbers')
    return slice(*limits)


def _path(machine: Any, *parts: str) -> str:
    machine.charge(sum(map(len, parts)))
    return posixpath.join(*parts) if parts else '.'


def _dict(machine: Any, items: Any = ()) -> dict:
    if type(items) is not dict:  # a defaultdict's factory
        return {}
    machine.charge(64 * len(items))
    return dict(items)


def _method(machine: Any, owner: Any, name: str) -> Symbol:
    """Name a statistic of the log history; it is never called."""
    if type(owner) is not Symbol or not owner.name.startswith(
            'HistoryBuffer') or type(name) is not str:
        machine.refuse(f'an attribute of {owner}' if type(owner) is Symbol
                       else 'builtins.getattr')
    return Symbol(owner.module, f'{owner.name}.{name}')


def _fill_ordered_dict(machine: Any, value: OrderedDict, state: Any) -> None:
    """Take the versions that a module's state dict carries beside it."""
    if type(state) is not dict or set(state) - {'_metadata'}:
        machine.refuse('attributes of an OrderedDict')
    for key, part in state.items():
        setattr(value, key, part)


def _fill_settings(machine: Any, value: _Settings, state: Any) -> None:
    if type(state) is not dict:
        raise ValueError('settings are a dict')
    value.update(state)


# torch


def _tensor(machine: Any, storage: Storage, offset: int, size: Any,
            stride: Any, requires_grad: bool = False, hooks: Any = None,
            metadata: Any = None) -> torch.Tensor:
    if type(storage) is not Storage or hooks or metadata:
        machine.refuse('a tensor with hooks or lazy conjugation')
    flat, size = storage.flat, _ints(size)
    tensor = torch.as_strided(flat, size, _ints(stride), *_ints([offset]))
    if tensor.numel() > flat.numel():
        machine.charge(tensor.numel() * tensor.element_size())
    return tensor.requires_grad_() if requires_grad is True else tensor


def _tensor_of_dtype(machine: Any, storage: Storage, offset: int, size: Any,
                     stride: Any, requires_grad: bool, hooks: Any,
                     dtype: torch.dtype, metadata: Any = None
                     ) -> torch.Tensor:
    typed = Storage(storage.flat.view(torch.uint8).view(dtype))
    return _tensor(machine, typed, offset, size, stride, requires_grad, hooks,
                   metadata)


def _parameter(machine: Any, data: torch.Tensor, requires_grad: bool,
               hooks: Any = None, state: Any = None) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor) or hooks or state:
        machine.refuse('a parameter with hooks or attributes')
    return torch.nn.Parameter(data, requires_grad=requires_grad is True)


def _size(machine: Any, sizes: Any = ()) -> torch.Size:
    return torch.Size(_ints(sizes))


def _device(machine: Any, kind: str, *index: int) -> torch.device:
    return torch.device(kind, *index)


# numpy


def _dtype(machine: Any, code: str, *flags: Any) -> _DType:
    if type(code) is not str or not re.fullmatch(
            r'[<>|=]?([?bBhHiIlLqQefd]|[iu][1248]|f[248]|c(8|16)|b1|[US]\d+)',
            code):
        machine.refuse(f'a numpy array of {code!r}')
    return _DType(code)


def _fill_dtype(machine: Any, value: _DType, state: Any) -> None:
    if type(state) is not tuple or len(state) < 2 or any(
            s is not None for s in state[2:5]) or (
                state[1] not in ('<', '>', '|', '=')):
        raise ValueError('a numpy dtype with fields')
    if state[1] in '<>':
        value.value = value.value.newbyteorder(state[1])


def _array_data(machine: Any, data: Any, dtype: Any, count: int) -> bytes:
    if type(data) is str:  # of Python 2
        data = data.encode('latin-1')
    if type(dtype) is not _DType or type(data) not in (bytes, bytearray):
        raise ValueError('a numpy array without numbers')
    if len(data) != count * dtype.value.itemsize:
        raise ValueError('a numpy array is not as long as it says')
    machine.charge(len(data))
    return bytes(data)


def _new_array(machine: Any, kind: Any, *_: Any) -> np.ndarray:
    if kind != Symbol('numpy', 'ndarray'):
        machine.refuse(f'a numpy array of type {kind}')
    array = np.empty(0, np.uint8)
    machine.unfilled_arrays.add(id(array))
    machine.kept.append(array)  # so that no other gets its id
    return array


def _fill_array(machine: Any, value: np.ndarray, state: Any) -> None:
    if id(value) not in machine.unfilled_arrays:
        raise ValueError('a numpy array is filled twice')
    machine.unfilled_arrays.discard(id(value))
    _, shape, dtype, fortran, data = state
    shape = _ints(shape)
    data = _array_data(machine, data, dtype, int(np.prod(shape, dtype=object)))
    value.__setstate__((1, shape, dtype.value, fortran is True, data))


def _array_from_buffer(machine: Any, data: Any, dtype: Any, shape: Any,
                       order: str) -> np.ndarray:
    shape = _ints(shape)
    data = _array_data(machine, data, dtype, int(np.prod(shape, dtype=object)))
    array = np.frombuffer(bytearray(data), dtype.value)
    return array.reshape(shape, order='F' if order == 'F' else 'C')


def _numpy_scalar(machine: Any, dtype: Any, data: Any) -> np.generic:
    return np.frombuffer(_array_data(machine, data, dtype, 1), dtype.value)[0]


# mmengine


def _new_log_history(machine: Any) -> HistoryBuffer:
    return HistoryBuffer()


def _fill_history(machine: Any, value: HistoryBuffer, state: Any) -> None:
    if type(state) is not dict or set(state) - STATE_KEYS:
        machine.refuse('a log history of another form than mmengine\'s')
    fill_log_history(value, state)


_PATHS = dict.fromkeys(('Path', 'PosixPath', 'WindowsPath', 'PurePath',
                        'PurePosixPath', 'PureWindowsPath'), _path)
# What follows a name, instead of calling it.
CALLS: Dict[Symbol, Callable[..., Any]] = {
    **_symbols('builtins', dict(
        set=_as_set(set), frozenset=_as_set(frozenset), bytes=_encode,
        bytearray=_bytearray, complex=_complex, slice=_slice,
        getattr=_method)),
    **_symbols('collections', dict(
        OrderedDict=_ordered_dict, defaultdict=_dict)),
    **_symbols('_codecs', dict(encode=_encode)),
    **_symbols('pathlib', _PATHS),
    **_symbols('torch', dict(Size=_size, device=_device)),
    **_symbols('torch._utils', dict(
        _rebuild_tensor=_tensor, _rebuild_tensor_v2=_tensor,
        _rebuild_tensor_v3=_tensor_of_dtype, _rebuild_parameter=_parameter,
        _rebuild_parameter_with_state=_parameter)),
    **_symbols('numpy', dict(dtype=_dtype)),
    **_symbols('numpy._core.multiarray', dict(
        _reconstruct=_new_array, scalar=_numpy_scalar)),
    **_symbols('numpy._core.numeric', dict(_frombuffer=_array_from_buffer)),
    Symbol('mmengine.config.config', 'ConfigDict'): _dict,
}
# The same for objects that get a state afterwards.
NEW: Dict[Symbol, Callable[..., Any]] = {
    Symbol('mmengine.logging.history_buffer', 'HistoryBuffer'):
    _new_log_history,
    Symbol('argparse', 'Namespace'): lambda machine: _Settings(),
    Symbol('collections', 'OrderedDict'): _ordered_dict,
}
STATES: Dict[type, Callable[..., None]] = {
    OrderedDict: _fill_ordered_dict,
    _Settings: _fill_settings,
    _DType: _fill_dtype,
    np.ndarray: _fill_array,
    HistoryBuffer: _fill_history,
}
