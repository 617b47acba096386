"""Reads pickles without running them: names in a file stay names."""
import pickletools
from collections import OrderedDict
from typing import (
    Any,
    BinaryIO,
    Callable,
    Dict,
    List,
    NoReturn,
    Optional,
    Set,
)

from .builders import CALLS, CONSTANTS, NEW, STATES
from .errors import CheckpointError
from .plain_values import Symbol, check_key, check_plain
from .zip_records import damaged_if_unreadable

_PUSHED = frozenset((
    'INT', 'LONG', 'LONG1', 'LONG4', 'BININT', 'BININT1', 'BININT2', 'STRING',
    'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8',
    'BYTEARRAY8', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8',
    'FLOAT', 'BINFLOAT'))
_NEW_VALUES: Dict[str, Callable[[], Any]] = dict(
    NONE=lambda: None,
    NEWTRUE=lambda: True,
    NEWFALSE=lambda: False,
    EMPTY_TUPLE=tuple,
    EMPTY_LIST=list,
    EMPTY_DICT=dict,
    EMPTY_SET=set)
_NOTHING = frozenset(('FRAME', 'READONLY_BUFFER'))
_TUPLES = dict(TUPLE1=1, TUPLE2=2, TUPLE3=3)
# What a pickle may make by copying, beyond a multiple of its own size.
_SPARE_BYTES, _GROWTH = 1 << 24, 8


def read_pickle(source: BinaryIO,
                name: str,
                size: int,
                storage: Optional[Callable[[Any], Any]] = None) -> Any:
    """Read one pickle, from where the source stands.

    Nothing that the file names is ever imported, looked up or called: names
    are kept as text, and only what stands in ``builders`` is built, by
    code of our own: plain values and containers, tensors, numpy arrays of
    numbers, mmengine's log history.

    Args:
        source (BinaryIO): The file, which has ``read``, ``readline`` and
            ``tell``, and never returns more than there is.
        name (str): Name of the file, for errors.
        size (int): Size of the source in bytes, which bounds what is built.
        storage (Callable, optional): Function that gives the storage named by
            a persistent id. Defaults to None, no storages are allowed.

    Returns:
        Any: The value of the pickle.

    Raises:
        CheckpointError: If the file names anything else, or is damaged.
    """
    with damaged_if_unreadable(name):
        machine = _Machine(name, size, storage)
        value = machine.run(source)
        check_plain(value, machine.refuse)
    return value


class _Machine:
    """A stack machine for pickle's opcodes, protocols 0 to 5."""

    def __init__(self, name: str, size: int,
                 storage: Optional[Callable[[Any], Any]]) -> None:
        self.name = name
        self.storage = storage
        self.left = _SPARE_BYTES + _GROWTH * size
        self.stack: List[Any] = []
        self.marked: List[List[Any]] = []
        self.memo: Dict[int, Any] = {}
        self.unfilled_arrays: Set[int] = set()
        self.kept: List[Any] = []

    def run(self, source: BinaryIO) -> Any:
        """Run to the end of the pickle and return its value."""
        for opcode, arg, _ in pickletools.genops(source):
            name = opcode.name
            if name in _PUSHED:
                self.stack.append(arg)
            elif name in _NEW_VALUES:
                self.stack.append(_NEW_VALUES[name]())
            elif name in _TUPLES:
                count = _TUPLES[name]
                if len(self.stack) < count:
                    raise ValueError('the stack is too short')
                items = tuple(self.stack[-count:])
                del self.stack[-count:]
                self.stack.append(items)
            elif name not in _NOTHING:
                step = getattr(self, f'do_{name.lower()}', None)
                if step is None:
                    self.refuse(f'a pickle opcode {name}')
                step(arg)
        if len(self.stack) != 1 or self.marked:
            raise ValueError('it ends in the middle of a value')
        return self.stack[0]

    def refuse(self, what: Any) -> NoReturn:
        """Refuse what is no plain value.

        Raises:
            CheckpointError: Always.
        """
        text = str(what)[:200]
        text = text if text.isprintable() else ascii(text)
        raise CheckpointError(
            f'{self.name} holds {text}, which is more than tensors and plain '
            'values, and reading it could run code that is in the file, so it '
            'is refused; if you trust its origin, load it once in a script of '
            "your own with torch.load(..., weights_only=False) and save its "
            "'state_dict' alone")

    def charge(self, num_bytes: int) -> None:
        """Count what is made by copying.

        Raises:
            ValueError: If it is far more than the file holds.
        """
        self.left -= num_bytes
        if self.left < 0:
            raise ValueError('it asks for far more memory than it holds data')

    def pop_mark(self) -> List[Any]:
        """Take what was pushed since the last mark."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    # Control

    def do_proto(self, version: int) -> None:
        if version > 5:
            raise ValueError(f'pickle protocol {version} is unknown')

    def do_stop(self, _: None) -> None:
        """The value is what is left on the stack."""

    def do_mark(self, _: None) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def do_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def do_pop_mark(self, _: None) -> None:
        self.pop_mark()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    do_binget = do_long_binget = do_get

    # Containers

    def do_tuple(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def do_list(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def do_dict(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set_items(items)

    def do_frozenset(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(map(check_key, items)))

    def do_append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def do_appends(self, _: None) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: List[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError('items are appended to what is no list')
        self.stack[-1].extend(items)

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def do_setitems(self, _: None) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: List[Any]) -> None:
        if type(self.stack[-1]) not in (dict, OrderedDict) or len(items) % 2:
            raise ValueError('items are set in what is no dict')
        for key, value in zip(items[::2], items[1::2]):
            self.stack[-1][check_key(key)] = value

    def do_additems(self, _: None) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise ValueError('items are added to what is no set')
        self.stack[-1].update(map(check_key, items))

    # What pickle itself would import and call

    def do_global(self, arg: str) -> None:
        self._push_symbol(*arg.split(' ', 1))

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_symbol(module, name)

    def _push_symbol(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError('a name is no text')
        symbol = Symbol.of(module, name)
        self.stack.append(CONSTANTS.get(symbol, symbol))

    def do_reduce(self, _: None) -> None:
        self._build_from(CALLS)

    def do_newobj(self, _: None) -> None:
        self._build_from(NEW)

    def _build_from(self, table: Dict[Symbol, Callable[..., Any]]) -> None:
        args, symbol = self.stack.pop(), self.stack.pop()
        build = table.get(symbol) if type(symbol) is Symbol else None
        if build is None:
            self.refuse(symbol if type(symbol) is Symbol else
                        f'a call of a {type(symbol).__name__}')
        if type(args) is not tuple:
            raise ValueError(f'{symbol} takes a tuple of arguments')
        self.stack.append(build(self, *args))

    def do_build(self, _: None) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        fill = STATES.get(type(value))
        if fill is None:
            self.refuse(f'a state for {value}' if type(value) is Symbol else
                        f'a state for a {type(value).__name__}')
        fill(self, value, state)

    def do_binpersid(self, _: None) -> None:
        if self.storage is None:
            self.refuse('a reference to a storage outside of it')
        self.stack.append(self.storage(self.stack.pop()))
