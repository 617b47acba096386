"""Streams of pickle opcodes call nothing and ask for little."""
import copyreg
import io
import pickle
import pickletools
import resource
import struct
import sys
import threading
import time
import zipfile
from pathlib import Path

import payloads
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from payloads import body, read_bytes
from tiny_training import end_fork, start_fork

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


def test_watch_detects_payloads(marker):
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
    # a tensor larger than its record, or repeating it
    torch.save(torch.zeros(1).expand(10**10), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='far more memory'):
        load_file(tmp_path / 'a.pth')


def _bytes(content: bytes) -> bytes:
    return b'B' + struct.pack('<I', len(content)) + content


def _text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


_BUFFER = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
_ARRAY = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85'
          b'C\x01b\x87R')
_F8 = b'cnumpy\ndtype\n' + _text('f8') + b'\x89\x88\x87R'
_STORAGE = (b'(' + _text('storage') + b'ctorch\nFloatStorage\n' + _text('0') +
            _text('cpu') + b'J\xff\xff\xff\x7ftQ')
# Nested tuples with an exponential hash: each contains the previous twice.
_TUPLES = b')q\x00' + b''.join(b'h%c' % i + b'h%c' % i + b'\x86q%c' % (i + 1)
                              for i in range(60))
BOMBS = dict(
    hash_of_a_key=b'}' + _TUPLES + b'Ns.',
    hash_of_keys=b'}(' + _TUPLES + b'Nu.',
    hash_of_a_dict=b'(' + _TUPLES + b'Nd.',
    hash_in_a_set=b'\x8f(' + _TUPLES + b'\x90.',
    hash_in_a_frozenset=b'(' + _TUPLES + b'\x91.',
    hash_in_a_called_set=b'c__builtin__\nset\n]' + _TUPLES + b'a\x85R.',
    hash_in_an_ordered_dict=b'ccollections\nOrderedDict\n)R' + _TUPLES +
    b'Ns.',
    hash_in_pairs=b'ccollections\nOrderedDict\n]' + _TUPLES + b'N\x86a\x85R.',
    bytes_of_a_terabyte=b'\x8e' + struct.pack('<Q', 1 << 40) + b'.',
    bytearray_of_a_terabyte=b'\x96' + struct.pack('<Q', 1 << 40) + b'.',
    text_of_a_terabyte=b'\x8d' + struct.pack('<Q', 1 << 40) + b'.',
    long_of_gigabytes=b'\x8b' + struct.pack('<i', 2**31 - 1) + b'.',
    long_negative=b'\x8b' + struct.pack('<i', -1) + b'.',
    long_in_digits=b'I' + b'9' * 10**6 + b'\n.',
    float_in_digits=b'Fnan(' + b'9' * 10**6 + b'\n.',
    array_shape=_ARRAY + b'(K\x01(J\xff\xff\xff\x7f' * 1 +
    b'J\xff\xff\xff\x7ft' + _F8 + b'\x89C\x00tb.',
    array_negative=_ARRAY + b'(K\x01(J\xff\xff\xff\xffJ\xff\xff\xff\xfft' +
    _F8 + b'\x89C\x08' + bytes(8) + b'tb.',
    array_of_objects=b'cnumpy\ndtype\n' + _text('O') + b'\x89\x88\x87R.',
    array_of_records=_F8[:-1] + b'R(K\x03' + _text('|') + b'N' +
    b'(' + _text('a') + b't}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.',
    array_of_large_text=b'cnumpy\ndtype\n' + _text('U999999999') +
    b'\x89\x88\x87Rq\x00' + b'cnumpy.core.multiarray\nscalar\nh\x00C\x00'
    b'\x86R.',
    array_twice=_ARRAY + b'q\x00' + (
        b'(K\x01K\x00\x85' + _F8 + b'\x89C\x00tb') * 2 + b'.',
    copies=_bytes(bytes(9000)) + b'q\x000(' + (
        b'cbuiltins\nbytearray\nh\x00\x85R' * 3000) + b't.',
    texts=_text('a' * 9000) + b'q\x000(' + (
        b'c_codecs\nencode\nh\x00' + _text('latin1') + b'\x86R') * 3000 +
    b't.',
    paths=_text('a' * 9000) + b'q\x000(' + (
        b'cpathlib\nPosixPath\nh\x00\x85R' * 3000) + b't.',
    size=b'ctorch\nSize\n(J\xff\xff\xff\xfft\x85R.',
    storage=_STORAGE + b'.',
    tensor_of_a_storage=b'ctorch._utils\n_rebuild_tensor_v2\n(' + _STORAGE +
    b'K\x00K\x01\x85K\x01\x85\x89NtR.',
    a_reference_by_text=b'P1\n.',
    a_reference_to_nothing=b'NQ.',
    a_reference_to_a_list=b']Q.',
    a_reference_that_is_short=b'(' + _text('storage') + b'tQ.',
    a_reference_to_a_class=b'(' + _text('storage') + b'cos\nsystem\n' +
    _text('0') + _text('cpu') + b'K\x01tQ.',
    a_reference_of_odd_values=b'(' + _text('storage') +
    b'ctorch\nFloatStorage\n]}NtQ.',
    slots=_BUFFER + b')\x81N}' + _text('__class__') + b'Ns\x86b.',
    state_of_a_class=_BUFFER + b'}' + _text('mean') + b'K\x01sb.',
    state_of_a_list=b']}' + _text('append') + b'K\x01sb.',
    state_of_a_type=b'ctorch\nfloat32\n}' + _text('x') + b'K\x01sb.',
    items_of_a_class=_BUFFER + b'K\x01K\x02s.',
    items_of_text=_text('a') + b'K\x01K\x02s.',
    items_of_bytes=b'\x96' + struct.pack('<Q', 2) + b'abK\x00K\x02s.',
    appending_to_bytes=b'\x96' + struct.pack('<Q', 2) + b'abK\x00a.',
    appending_to_a_tuple=b')K\x00a.',
    adding_to_a_dict=b'}(K\x01\x90.',
    odd_items=b'}(K\x01u.',
    a_call_of_a_call=b'ccollections\nOrderedDict\n)R)R.',
    a_call_of_text=_text('os.system') + _text('true') + b'\x85R.',
    a_dotted_name=_text('os') + _text('path.os.system') + b'\x93' +
    _text('true') + b'\x85R.',
    a_dotted_method=b'cmmengine.logging.history_buffer\n'
    b'HistoryBuffer.__init__.__globals__.get\n' + _text('a') + b'\x85R.',
    an_attribute_of_a_module=b'cbuiltins\ngetattr\ncos\nsystem\n' +
    _text('__call__') + b'\x86R.',
    no_arguments=b'cbuiltins\ngetattr\n)R.',
    no_stack=b'R.', no_mark=b't.', nothing=b'.', no_end=b'N',
    unknown=b'\xff.', a_new_protocol=b'\x80\x09N.',
    an_extension=b'\x82\xf0.', a_large_extension=b'\x84\xf0\xf0\xf0\x00.',
    out_of_band=b'\x97.', read_only=b'\x96' + struct.pack('<Q', 1) +
    b'a\x98.',
    keywords=b'cbuiltins\nset\n)}\x92.', an_old_class=b'(ios\nsystem\n.',
    an_object=b'(cos\nsystem\no.', itself=b']q\x00h\x00a.',
    deep=b'(' * 50000 + b't' * 50000 + b'.', deep_lists=b'](' * 3000 + b'.',
)


# What asks for much and gets nothing of it.
HARMLESS = dict(
    memo_index=b'Nr\xff\xff\xff\x7f.0',
    memo_text=b'Np99999999999999\n.0',
    frame_of_a_terabyte=b'\x95' + struct.pack('<Q', 1 << 40) + b'N.')


@pytest.mark.parametrize('wrap', [
    lambda pickled: pickled, lambda pickled: b'\x80\x04' + pickled])
def test_decompression_bombs_raise_quickly(wrap, marker, tmp_path):
    """In little memory, too, which the system limits here."""
    copyreg.add_extension('os', 'system', 0xf0)

    def read_all():
        used = int(Path('/proc/self/statm').read_text().split()[0])
        limit = used * resource.getpagesize() + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        wrong = [name for name, asks in HARMLESS.items()
                 if read_bytes(wrap(asks)) is not None]
        for name, bomb in BOMBS.items():
            start = time.time()
            try:
                wrong.append((name, repr(read_bytes(wrap(bomb)))[:99]))
            except CheckpointError as error:
                if '\n' in str(error) or len(str(error)) > 700 or (
                        'could not be read' in str(error)):
                    wrong.append((name, str(error)[:200]))
            if time.time() - start > 20:
                wrong.append((name, 'took too long'))
        (tmp_path / 'wrong').write_text(repr(wrong))

    try:
        assert end_fork(start_fork(read_all)) == 0
    finally:
        copyreg.remove_extension('os', 'system', 0xf0)
    assert (tmp_path / 'wrong').read_text() == '[]'


def test_popped_objects_are_inert():
    """Calls that nothing refers to have no effect; names are refused."""
    content = b'}' + _BUFFER + b')\x81}' + _text('max_length') + b'K\x01sb0.'
    with pytest.raises(CheckpointError):  # no values
        read_bytes(content)
    assert read_bytes(b'}' + _BUFFER + b')\x810.') == {}
    for name in (b'cos\nsystem\n', b'cbuiltins\neval\n'):
        with pytest.raises(CheckpointError, match='could run code'):
            read_bytes(b'}' + name + b'0.')
    # and what is read twice is no class that the first has changed
    history = pickle.dumps(HistoryBuffer([1.], [1]))
    for _ in range(2):
        assert read_bytes(history).mean() == 1


def write_by_hand(path, zipped, **change):
    """Write a file with any metadata of a tensor and its storage."""
    said = dict(kind=torch.FloatStorage, key='0', location='cpu', numel=4,
                offset=0, size=(4, ), stride=(1, ))
    said.update(change)

    class Id:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Id(), said['offset'], said['size'], said['stride'], False,
                None)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Id):
                return None
            more = () if zipped else (None, )
            return ('storage', said['kind'], said['key'], said['location'],
                    said['numel'], *more)

    out = io.BytesIO()
    Pickler(out, 2).dump(dict(a=Tensor()))
    data = struct.pack('<4f', 1, 2, 3, 4)
    if zipped:
        payloads.write_zip(path, out.getvalue())
        with zipfile.ZipFile(path, 'a') as archive:
            archive.writestr('archive/data/0', data)
    else:
        payloads.write_legacy(path, out.getvalue())
        content = path.read_bytes()[:-len(pickle.dumps([], protocol=2))]
        path.write_bytes(content + pickle.dumps(['0'], protocol=2) +
                         struct.pack('<q', 4) + data)


def test_handwritten_configs_are_read(tmp_path):
    """So that the test below can fail."""
    for zipped in (True, False):
        write_by_hand(tmp_path / 'a.pth', zipped)
        assert load_file(tmp_path / 'a.pth')['a'].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize('change', [
    dict(numel=10**9), dict(numel=-1), dict(numel=2.), dict(size=(10**9, )),
    dict(size=(-1, )), dict(stride=(-1, )), dict(stride=(10**9, )),
    dict(offset=3), dict(offset=-1), dict(size=(2, 2)), dict(stride=(1, 1)),
    dict(size=(2**62, 2**62), stride=(0, 0)), dict(key='1'), dict(key='../x'),
    dict(location='cuda:0'), dict(location='nowhere'), dict(location=1),
    dict(kind=torch.DoubleStorage)])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_tensor_stays_within_its_storage(change, zipped, tmp_path):
    path = tmp_path / 'a.pth'
    write_by_hand(path, zipped, **change)
    with pytest.raises(CheckpointError) as error:
        load_file(path)
    assert path.name in str(error.value)
