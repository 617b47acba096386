"""Builds tensors and numpy arrays from what a file says of them.

Every function gets the machine that reads the file, then values from the
file, and checks these.
"""
import re
from typing import Any, Dict

import numpy as np
import torch

from .plain_values import DType, Storage, Symbol

DTYPES = {
    str(dtype).removeprefix('torch.'): dtype
    for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
    and not str(dtype).startswith(('torch.q', 'torch.bits'))
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


def _ints(values: Any) -> tuple:
    if not all(type(v) is int and v >= 0 for v in values):
        raise ValueError('sizes are whole numbers')
    return tuple(values)


# torch


def make_tensor(machine: Any, storage: Storage, offset: int, size: Any,
                stride: Any, requires_grad: bool = False, hooks: Any = None,
                metadata: Any = None) -> torch.Tensor:
    """Build a view of a storage (``_rebuild_tensor``, ``_v2``)."""
    if type(storage) is not Storage or hooks or metadata:
        machine.refuse('a tensor with hooks or lazy conjugation')
    flat, size = storage.flat, _ints(size)
    tensor = torch.as_strided(flat, size, _ints(stride), *_ints([offset]))
    if tensor.numel() > flat.numel():
        machine.charge(tensor.numel() * tensor.element_size())
    return tensor.requires_grad_() if requires_grad is True else tensor


def tensor_of_dtype(machine: Any, storage: Storage, offset: int, size: Any,
                    stride: Any, requires_grad: bool, hooks: Any,
                    dtype: torch.dtype, metadata: Any = None
                    ) -> torch.Tensor:
    """Build a view of bytes (``_rebuild_tensor_v3``)."""
    typed = Storage(storage.flat.view(torch.uint8).view(dtype))
    return make_tensor(machine, typed, offset, size, stride, requires_grad,
                       hooks, metadata)


def make_parameter(machine: Any, data: torch.Tensor, requires_grad: bool,
                   hooks: Any = None, state: Any = None
                   ) -> torch.nn.Parameter:
    """Build a parameter (``_rebuild_parameter``)."""
    if not isinstance(data, torch.Tensor) or hooks or state:
        machine.refuse('a parameter with hooks or attributes')
    return torch.nn.Parameter(data, requires_grad=requires_grad is True)


def make_size(machine: Any, sizes: Any = ()) -> torch.Size:
    """Build a ``torch.Size``."""
    return torch.Size(_ints(sizes))


def make_device(machine: Any, kind: str, *index: int) -> torch.device:
    """Build a ``torch.device``."""
    return torch.device(kind, *index)


# numpy


def make_dtype(machine: Any, code: str, *flags: Any) -> DType:
    """Build a dtype of numbers or text; objects would be pickles again."""
    if type(code) is not str or not re.fullmatch(
            r'[<>|=]?([?bBhHiIlLqQefd]|[iu][1248]|f[248]|c(8|16)|b1|'
            r'[US][1-9]\d*)', code):
        machine.refuse(f'a numpy array of {code!r}')
    return DType(code)


def fill_dtype(machine: Any, value: DType, state: Any) -> None:
    """Set a dtype's byte order."""
    if type(state) is not tuple or len(state) < 2 or any(
            s is not None for s in state[2:5]) or (
                state[1] not in ('<', '>', '|', '=')):
        raise ValueError('a numpy dtype with fields')
    if state[1] in '<>':
        value.value = value.value.newbyteorder(state[1])


def _array_data(machine: Any, data: Any, dtype: Any, count: int) -> bytes:
    if type(data) is str:  # of Python 2
        data = data.encode('latin-1')
    if type(dtype) is not DType or type(data) not in (bytes, bytearray):
        raise ValueError('a numpy array without numbers')
    if len(data) != count * dtype.value.itemsize:
        raise ValueError('a numpy array is not as long as it says')
    machine.charge(len(data))
    return bytes(data)


def new_array(machine: Any, kind: Any, *_: Any) -> np.ndarray:
    """Make an array that is filled later (``_reconstruct``)."""
    if kind != Symbol('numpy', 'ndarray'):
        machine.refuse(f'a numpy array of type {kind}')
    array = np.empty(0, np.uint8)
    machine.unfilled_arrays.add(id(array))
    machine.kept.append(array)  # so that no other gets its id
    return array


def fill_array(machine: Any, value: np.ndarray, state: Any) -> None:
    """Fill an array, in place as others may hold it, and once."""
    if id(value) not in machine.unfilled_arrays:
        raise ValueError('a numpy array is filled twice')
    machine.unfilled_arrays.discard(id(value))
    _, shape, dtype, fortran, data = state
    shape = _ints(shape)
    data = _array_data(machine, data, dtype, int(np.prod(shape, dtype=object)))
    filled: Any = (1, shape, dtype.value, fortran is True, data)
    value.__setstate__(filled)


def array_from_buffer(machine: Any, data: Any, dtype: Any, shape: Any,
                      order: str) -> np.ndarray:
    """Build an array of protocol 5 (``_frombuffer``)."""
    shape = _ints(shape)
    data = _array_data(machine, data, dtype, int(np.prod(shape, dtype=object)))
    array = np.frombuffer(bytearray(data), dtype.value)
    return array.reshape(shape, order='F' if order == 'F' else 'C')


def numpy_scalar(machine: Any, dtype: Any, data: Any) -> np.generic:
    """Build a number of numpy (``scalar``)."""
    return np.frombuffer(_array_data(machine, data, dtype, 1), dtype.value)[0]
