"""What may stand in a checkpoint."""
from collections import OrderedDict
from typing import Any, Callable, Dict, List, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

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


class DType:
    """A numpy dtype whose byte order is told after its kind."""

    def __init__(self, code: str) -> None:
        self.value = np.dtype(code)


class Settings(dict):
    """An ``argparse.Namespace``, read as a dict."""


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
        value (Any): A value that was read; a storage may stand alone.
        refuse (Callable): Function that raises an error which names what it is
            given.

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
    if kind in (dict, OrderedDict, Settings):
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
