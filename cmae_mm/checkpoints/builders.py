"""Builds plain values from inert parts: the list of all that a file may ask.

Every function gets the machine that reads the file, then values from the
file, and checks these.
"""
import posixpath
from collections import OrderedDict
from typing import Any, Callable, Dict

import numpy as np
from mmengine.logging import HistoryBuffer

from . import array_builders as arrays
from .log_history import STATE_KEYS, fill_log_history
from .plain_values import DType, Settings, Symbol, check_key


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


def _fill_settings(machine: Any, value: Settings, state: Any) -> None:
    if type(state) is not dict:
        raise ValueError('settings are a dict')
    value.update(state)


def _new_log_history(machine: Any) -> HistoryBuffer:
    return HistoryBuffer()


def _fill_history(machine: Any, value: HistoryBuffer, state: Any) -> None:
    if type(state) is not dict or set(state) - STATE_KEYS:
        machine.refuse("a log history of another form than mmengine's")
    fill_log_history(value, state)


def _symbols(module: str, table: Dict[str, Any]) -> Dict[Symbol, Any]:
    return {Symbol(module, name): value for name, value in table.items()}


CONSTANTS: Dict[Symbol, Any] = _symbols('torch', arrays.DTYPES)
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
    **_symbols('torch', dict(
        Size=arrays.make_size, device=arrays.make_device)),
    **_symbols('torch._utils', dict(
        _rebuild_tensor=arrays.make_tensor,
        _rebuild_tensor_v2=arrays.make_tensor,
        _rebuild_tensor_v3=arrays.tensor_of_dtype,
        _rebuild_parameter=arrays.make_parameter,
        _rebuild_parameter_with_state=arrays.make_parameter)),
    **_symbols('numpy', dict(dtype=arrays.make_dtype)),
    **_symbols('numpy._core.multiarray', dict(
        _reconstruct=arrays.new_array, scalar=arrays.numpy_scalar)),
    **_symbols('numpy._core.numeric', dict(
        _frombuffer=arrays.array_from_buffer)),
    Symbol('mmengine.config.config', 'ConfigDict'): _dict,
}
# The same for objects that get a state afterwards.
NEW: Dict[Symbol, Callable[..., Any]] = {
    Symbol('mmengine.logging.history_buffer', 'HistoryBuffer'):
    _new_log_history,
    Symbol('argparse', 'Namespace'): lambda machine: Settings(),
    Symbol('collections', 'OrderedDict'): _ordered_dict,
}
STATES: Dict[type, Callable[..., None]] = {
    OrderedDict: _fill_ordered_dict,
    Settings: _fill_settings,
    DType: arrays.fill_dtype,
    np.ndarray: arrays.fill_array,
    HistoryBuffer: _fill_history,
}
