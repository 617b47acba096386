"""Files that run code when they are unpickled, for the tests of reading.

What they run is ``touch`` on a marker file.
"""
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from cmae_mm.checkpoints.read import read_pickle

# What safe loading may call, of which older versions of torch have no list.
HAS_SAFE_GLOBALS = hasattr(torch.serialization, 'add_safe_globals')
MAGIC, VERSION = 0x1950a86a20f9469cfc6c, 1001
HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b'X' + struct.pack('<I', len(encoded)) + encoded


def _getattr(value: bytes, name: str) -> bytes:
    return b'cbuiltins\ngetattr\n' + value + _text(name) + b'\x86R'


def _holder(names: bytes) -> bytes:
    """A log history with the entries of a dict as its attributes."""
    return HISTORY + b')\x81' + names + b'b'


def system(marker: Path) -> bytes:
    """The plainest: a call of os.system."""
    return b'cos\nsystem\n' + _text(f'touch {marker}') + b'\x85R'


def stack_global(marker: Path) -> bytes:
    """The same with names from the stack, as of protocol 4."""
    return (_text('os') + _text('system') + b'\x93' +
            _text(f'touch {marker}') + b'\x85R')


def inst(marker: Path) -> bytes:
    """The oldest form of a call."""
    return b'(' + _text(f'touch {marker}') + b'ios\nsystem\n'


def obj(marker: Path) -> bytes:
    """A class and its arguments after a mark."""
    return (b'(csubprocess\nPopen\n' + b']' + _text('touch') + b'a' +
            _text(str(marker)) + b'ao')


def new_object_with_keywords(marker: Path) -> bytes:
    """A call through functools, whose partial is made by NEWOBJ_EX."""
    return (b'cfunctools\npartial\n' + b'cos\nsystem\n' +
            _text(f'touch {marker}') + b'\x86}\x92' + b')R')


def build(marker: Path) -> bytes:
    """A state for a function: sets an attribute of torch.load."""
    return b'ctorch\nload\n}' + _text('marked') + _text(str(marker)) + b'sb'


def chain(marker: Path) -> bytes:
    """Nothing but getattr and mmengine's log history.

    It reaches sys.modules, then torch's own list of what safe loading may
    call, puts eval there, and calls it: this runs with weights_only=True
    where getattr is on the list.
    """
    own_globals = _getattr(_getattr(HISTORY, '__init__'), '__globals__')
    modules = _holder(
        _getattr(
            _getattr(
                _getattr(_holder(own_globals), 'warnings'), 'sys'),
            'modules'))
    run = _getattr(_getattr(modules, 'builtins'), 'eval')
    code = f'__import__("pathlib").Path({str(marker)!r}).touch()'
    if not HAS_SAFE_GLOBALS:
        return run + _text(code) + b'\x85R'
    unpickler = _getattr(
        _getattr(modules, 'torch._weights_only_unpickler'), '__dict__')
    return (run + b'q\x01' + unpickler + _text('_marked_safe_globals_set') +
            b']h\x01as' + b'h\x01' + _text(code) + b'\x85R' + b'\x87')


KINDS = (system, stack_global, inst, obj, new_object_with_keywords, build,
         chain)


def body(payload: bytes, place: str = 'meta') -> bytes:
    """A pickled checkpoint with the payload somewhere in it."""
    return (b'\x80\x02}' + _text('state_dict') + b'}' + _text('weight') +
            b'K\x01s' + b's' + _text(place) + b'}' + _text('note') + b']' +
            payload + b'as' + b's.')


def write_zip(path: Path, pickled: bytes) -> None:
    """In torch's zip format."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in (('data.pkl', pickled), ('byteorder', b'little'),
                              ('version', b'3\n')):
            archive.writestr(f'archive/{name}', content)


def write_legacy(path: Path, pickled: bytes) -> None:
    """In torch's format before 1.6."""
    system_info = dict(
        protocol_version=VERSION,
        little_endian=True,
        type_sizes=dict(short=2, int=4, long=4))
    out = io.BytesIO()
    for head in (MAGIC, VERSION, system_info):
        pickle.dump(head, out, protocol=2)
    out.write(pickled)
    pickle.dump([], out, protocol=2)
    path.write_bytes(out.getvalue())


def write_bare(path: Path, pickled: bytes) -> None:
    """As pickle.dump would write it."""
    path.write_bytes(pickled)


CONTAINERS = (write_zip, write_legacy, write_bare)


def read_bytes(content: bytes):
    return read_pickle(content, 'a file')


def has_run(marker: Path) -> bool:
    return marker.exists() or hasattr(torch.load, 'marked')


def assert_same(theirs, ours, where='') -> None:
    if isinstance(theirs, HistoryBuffer):
        assert type(ours) is HistoryBuffer
        assert ours.max_length == theirs.max_length
        assert_same(theirs.data, ours.data, where)
        assert ours.mean() == theirs.mean()
        return
    assert type(theirs) is type(ours), where
    if isinstance(theirs, torch.Tensor):
        assert (theirs.dtype, theirs.shape, theirs.stride()) == (
            ours.dtype, ours.shape, ours.stride()), where
        assert theirs.requires_grad == ours.requires_grad, where
        one, other = (t.detach().clone().contiguous().flatten().view(
            torch.uint8) if t.dim() else t.detach() for t in (theirs, ours))
        assert torch.equal(one, other), where
    elif isinstance(theirs, np.ndarray):
        assert theirs.dtype == ours.dtype, where
        np.testing.assert_array_equal(theirs, ours)
    elif isinstance(theirs, dict):
        assert list(theirs) == list(ours), where
        for key in theirs:
            assert_same(theirs[key], ours[key], f'{where}/{key}')
    elif isinstance(theirs, (list, tuple)):
        assert len(theirs) == len(ours), where
        for i, (one, other) in enumerate(zip(theirs, ours)):
            assert_same(one, other, f'{where}/{i}')
    else:
        assert theirs == ours, where
