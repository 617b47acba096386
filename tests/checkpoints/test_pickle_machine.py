"""Streams of pickle opcodes call nothing and ask for little."""
import pickle
import pickletools
import sys
import threading
import time

import payloads
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import body, read_bytes

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.checkpoints.read import load_file

_WATCHED = ('import', 'exec', 'compile', 'open', 'pickle.find_class',
            'os.', 'subprocess.', 'socket.', 'ctypes.', 'shutil.')
_seen = None
_READER = threading.get_ident()  # other threads have work of their own


def _watch(event, args):
    if (_seen is not None and event.startswith(_WATCHED)
            and threading.get_ident() == _READER):
        _seen.append((event, args))


sys.addaudithook(_watch)


_NAMES = ['os system', 'builtins eval', 'builtins getattr', 'posix system',
          'torch.storage _load_from_bytes', 'torch load', 'numpy dtype',
          'numpy ndarray', 'numpy._core.multiarray _reconstruct',
          'numpy.core.multiarray scalar', 'collections OrderedDict',
          'mmengine.logging.history_buffer HistoryBuffer', 'torch float32',
          'torch._utils _rebuild_tensor_v2', 'argparse Namespace',
          'builtins set', 'codecs encode', '_codecs encode', 'torch Size',
          'functools partial', 'subprocess Popen', 'importlib import_module']


def _argument(opcode):
    """Give what may follow an opcode."""
    text = st.sampled_from(['touch marker', '__globals__', 'eval', 'f4', 'a'])
    numbers = st.integers(0, 3)
    kind = opcode.arg.name if opcode.arg else ''
    if opcode.name in ('GLOBAL', 'INST'):
        return st.sampled_from(_NAMES).map(
            lambda n: n.replace(' ', '\n').encode() + b'\n')
    if kind in ('decimalnl_short', 'decimalnl_long', 'floatnl'):
        return numbers.map(lambda n: b'%d\n' % n)
    if kind in ('stringnl', 'stringnl_noescape', 'unicodestringnl'):
        return text.map(lambda t: (t if kind != 'stringnl' else
                                   repr(t)).encode() + b'\n')
    if kind in ('uint1', 'uint2', 'int4', 'uint4', 'uint8', 'float8'):
        size = int(kind[-1])
        return numbers.map(lambda n: n.to_bytes(size, 'little'))
    if kind:  # a length, then as much
        size = {'1': 1, '4': 4, '8': 8}[kind[-1]]
        return text.map(lambda t: len(t).to_bytes(size, 'little') +
                        t.encode())
    return st.just(b'')


_STEPS = st.sampled_from(pickletools.opcodes).flatmap(
    lambda o: _argument(o).map(lambda a: o.code.encode('latin-1') + a))
_CALLS = st.sampled_from(_NAMES).map(
    lambda n: b'c' + n.replace(' ', '\n').encode() + b'\n(K\x01X\x01\x00\x00'
    b'\x00atR')
_STREAMS = st.lists(
    st.one_of(_STEPS, _CALLS, st.sampled_from([b'}', b']', b'(', b')', b'0'])),
    max_size=25).map(lambda steps: b''.join(steps) + b'.')


@given(st.one_of(_STREAMS, st.binary(max_size=60)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_stream_of_opcodes_calls_anything(stream):
    global _seen
    read_bytes(b'Va\n.')  # Python imports the codec at its first use
    _seen = []
    try:
        read_bytes(stream)
    except CheckpointError as error:
        assert str(error)
    finally:
        seen, _seen = _seen, None
    assert not seen, seen


def test_the_watch_sees_what_a_payload_does(marker):
    """So that the test above can fail."""
    global _seen
    _seen = []
    try:
        pickle.loads(body(payloads.system(marker)))
    finally:
        seen, _seen = _seen, None
    assert any(event == 'os.system' for event, _ in seen)


def test_a_small_file_cannot_ask_for_much(tmp_path):
    laughs = b'](K\x01K\x01e' + b'q\x00' + b''.join(
        b'](' + b'h%c' % i * 10 + b'e' + b'q%c' % (i + 1)
        for i in range(12)) + b'\x94.'
    itself = b']q\x00h\x00a.'
    deep = b'(' * 3000 + b't' * 3000 + b'.'
    copies = b'(B' + (9000).to_bytes(4, 'little') + bytes(9000) + b'q\x00' + (
        b'cbuiltins\nbytearray\nh\x00\x85R' * 3000) + b't.'
    for content in (laughs, itself, deep, copies):
        start = time.time()
        with pytest.raises(CheckpointError, match='damaged'):
            read_bytes(content)
        assert time.time() - start < 60  # not for hours
    # a tensor that says it is larger than its record, or repeats it
    torch.save(torch.zeros(1).expand(10**10), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='far more memory'):
        load_file(tmp_path / 'a.pth')
