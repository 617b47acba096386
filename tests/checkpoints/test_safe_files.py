"""Nothing in a file is run, and what is damaged is found."""
import io
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import time
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import mmengine
import numpy as np
import payloads
import pytest
import timm
import torch
import torch._weights_only_unpickler as torch_unpickler
from helpers import CLASSIFIER, ROOT, build, model_cfg, runner_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.fileio.handlers import file_handlers
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils.dl_utils import load_url
from payloads import CONTAINERS, KINDS, body, write_zip
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cmae_mm.checkpoints import (
    CheckpointError,
    check_whole,
    load_only_safely,
    read_checkpoint,
    to_plain,
    write_checkpoint,
)
from cmae_mm.checkpoints.safe_pickle import read_pickle
from cmae_mm.checkpoints.torch_files import load_file
from cmae_mm.cli.main import main
from cmae_mm.engine import ResumableRunner


def read_bytes(content: bytes):
    return read_pickle(io.BytesIO(content), 'a file', len(content))


@pytest.fixture
def marker(tmp_path):
    """What a payload makes when it is run; taken back with all it changes."""
    allowed = torch_unpickler._marked_safe_globals_set.copy()
    yield tmp_path / 'marker'
    torch_unpickler._marked_safe_globals_set = allowed
    vars(torch.load).pop('marked', None)


def has_run(marker: Path) -> bool:
    return marker.exists() or hasattr(torch.load, 'marked')


@pytest.fixture
def safe_process(monkeypatch):
    """Take back what load_only_safely changes."""
    monkeypatch.setattr(torch, 'load', torch.load)
    monkeypatch.setattr(torch.serialization, 'load', torch.load)
    for name in ('WEIGHTS_ONLY', 'NO_WEIGHTS_ONLY'):
        monkeypatch.setenv(f'TORCH_FORCE_{name}_LOAD', '0')
        monkeypatch.delenv(f'TORCH_FORCE_{name}_LOAD')
    for name, handler in list(file_handlers.items()):
        monkeypatch.setitem(file_handlers, name, handler)


class TestPayloads:

    @pytest.mark.parametrize('kind', KINDS)
    def test_they_run_when_they_are_unpickled(self, kind, marker):
        """Otherwise what follows would prove nothing."""
        pickle.loads(body(kind(marker)))
        deadline = time.time() + 20
        while not has_run(marker) and time.time() < deadline:
            time.sleep(.02)  # one of them starts a process and does not wait
        assert has_run(marker)

    def test_getattr_is_enough_with_weights_only(self, marker, tmp_path):
        write_zip(tmp_path / 'a.pth', body(payloads.chain(marker)))
        torch.serialization.add_safe_globals([getattr, HistoryBuffer])
        torch.load(tmp_path / 'a.pth', weights_only=True)
        assert has_run(marker)

    @pytest.mark.parametrize('kind', KINDS)
    def test_they_are_refused_in_a_sentence(self, kind, marker, tmp_path):
        """In every container, wherever in a checkpoint they stand."""
        places = ('meta', 'optimizer', 'message_hub', 'state_dict')
        for write, place in zip(CONTAINERS * 2, places * 2):
            path = tmp_path / f'{write.__name__}_{place}.pth'
            write(path, body(kind(marker), place))
            for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
                with pytest.raises(CheckpointError) as error:
                    read(str(path))
                text = str(error.value)
                assert 'could run code' in text and path.name in text
                assert text.count('\n') == 0
        assert not has_run(marker)

    def test_names_that_are_no_values_are_refused(self):
        for content in (b'cos\nsystem\n.', b'](cos\nsystem\ne.',
                        b'cbuiltins\neval\n)R.', b'P1\n.', b'\x82\x01.',
                        b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
                        b')\x81}X\x05\x00\x00\x00__x__K\x01sb.',
                        b'ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00other'
                        b'K\x01sb.'):
            with pytest.raises(CheckpointError, match='could run code'):
                read_bytes(content)


# Commands ------------------------------------------------------------------


@pytest.fixture(scope='module')
def configs(image_root, tmp_path_factory):
    """Configs of a pre-training and of a classifier, as files."""
    folder = tmp_path_factory.mktemp('configs')
    pretrain = runner_cfg(image_root, folder / 'work')
    pretrain.dump(str(folder / 'pretrain.py'))
    images = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_root=str(image_root),
            data_prefix='train',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(32, 32)),
                dict(type='PackInputs')
            ]))
    Config(
        dict(
            default_scope='mmpretrain',
            model=CLASSIFIER,
            train_dataloader=images,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)),
            test_dataloader=images,
            test_evaluator=dict(type='Accuracy', topk=(1, )),
            test_cfg=dict())).dump(str(folder / 'classify.py'))
    return folder


TRAIN, TEST = ['train', 'pretrain.py'], ['test', 'classify.py']
INIT = 'model.backbone.init_cfg.checkpoint=FILE'
PRETRAINED = 'model.backbone.init_cfg.type=Pretrained'
# The words after cmae; FILE, OUT and the configs are filled in.
COMMANDS = {
    'resume': [*TRAIN, '--resume', 'FILE'],
    'load_from': [*TRAIN, '--cfg-options', 'load_from=FILE', 'resume=False'],
    'init_cfg of pre-training': [
        *TRAIN, '--cfg-options', PRETRAINED, INIT, 'resume=False'],
    'init_cfg of fine-tuning': [
        'train', 'classify.py', '--cfg-options', PRETRAINED, INIT],
    'test': [*TEST, 'FILE'],
    'k-NN': ['knn', 'pretrain.py', 'FILE'],
    'linear': ['linear', 'pretrain.py', 'FILE'],
    'few labels': ['low-shot', 'pretrain.py', 'FILE'],
    'import': ['import', 'pretrain.py', 'FILE', 'OUT'],
    'export': ['export', 'pretrain.py', 'FILE', 'OUT', '--to', 'timm'],
    'export of all': ['export', 'pretrain.py', 'FILE', 'OUT', '--to', 'cmae'],
    'verify': ['verify', 'FILE'],
}


def fill(words, file, configs, work):
    names = {'FILE': str(file), 'OUT': str(work / 'out.pth')}
    filled = []
    for word in words:
        for name, value in names.items():
            word = word.replace(name, value)
        if word in ('pretrain.py', 'classify.py'):
            word = str(configs / word)
        filled.append(word)
    if filled[0] in ('train', 'test', 'knn', 'linear', 'low-shot'):
        filled += ['--work-dir', str(work)]
    return filled


def run_here(words, monkeypatch, capsys) -> str:
    """Run a command in this process; give what it said in the end."""
    monkeypatch.chdir(ROOT)
    # sets the environment of distributed training for those after it
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('kind', [payloads.system, payloads.chain])
def test_no_command_runs_a_file(name, kind, configs, marker, tmp_path,
                                safe_process, monkeypatch, capsys):
    file = tmp_path / 'stranger.pth'
    write_zip(file, body(kind(marker)))
    said = run_here(fill(COMMANDS[name], file, configs, tmp_path / 'work'),
                    monkeypatch, capsys)
    assert 'could run code' in said and 'stranger.pth' in said
    assert 'Traceback' not in said and not has_run(marker)


@pytest.mark.parametrize('kind', [payloads.system, payloads.chain])
def test_a_strangers_file_in_the_work_folder_is_not_run(
        kind, configs, marker, tmp_path, safe_process, monkeypatch, capsys):
    """Resuming by itself, as all pre-training configs do."""
    work = tmp_path / 'work'
    work.mkdir()
    write_zip(work / 'iter_1.pth', body(kind(marker)))
    (work / 'last_checkpoint').write_text(str(work / 'iter_1.pth'))
    said = run_here(fill([*TRAIN, '--resume'], '', configs, work),
                    monkeypatch, capsys)
    assert 'could run code' in said and not has_run(marker)


def test_as_a_user_runs_it(configs, marker, tmp_path):
    """In processes of their own, one that starts another one."""
    file = tmp_path / 'stranger.pth'
    write_zip(file, body(payloads.chain(marker)))
    # as if the random starts had been trained before
    done = tmp_path / 'compare/random_seed0/result.json'
    done.parent.mkdir(parents=True)
    done.write_text('{"loss": 1}')
    for words in (COMMANDS['resume'],
                  ['compare', 'classify.py', 'FILE', '--seeds', '0',
                   '--work-dir', str(tmp_path / 'compare'), '--cfg-options',
                   PRETRAINED, 'train_cfg.max_epochs=1']):
        done = subprocess.run(
            [sys.executable, '-m', 'cmae_mm',
             *fill(words, file, configs, tmp_path / 'work')],
            cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True)
        assert done.returncode != 0, done.stdout
        assert 'Traceback' not in done.stderr.split('UserWarning')[-1]
        assert not has_run(marker)


def test_a_config_in_a_checkpoint_is_not_run(image_root, tmp_path, marker):
    """mmengine runs meta['config'] as Python when it resumes."""
    cfg = runner_cfg(image_root, tmp_path / 'work')
    runner = ResumableRunner.from_cfg(cfg)
    runner.train()
    path = tmp_path / 'work/iter_2.pth'
    checkpoint = load_file(path)
    checkpoint['meta']['config'] = (
        f'import pathlib\npathlib.Path({str(marker)!r}).touch()\n')
    torch.save(checkpoint, path)
    for kind in (ResumableRunner, Runner):
        cfg.train_cfg.max_iters = 3
        kind.from_cfg(cfg).resume(str(path))
        assert not has_run(marker)


def test_every_loader_of_a_command_is_safe(safe_process, marker, tmp_path):
    """Whatever it asks of torch.load, also one that downloads first."""
    load_only_safely()
    path = tmp_path / 'stranger.pth'
    write_zip(path, body(payloads.system(marker)))
    for load in (lambda: torch.load(path, weights_only=False),
                 lambda: torch.load(path, 'cpu', pickle, mmap=True),
                 lambda: load_url(path.as_uri(), str(tmp_path / 'hub'))):
        with pytest.raises(CheckpointError, match='could run code'):
            load()
    assert not has_run(marker)
    torch.save(dict(a=torch.ones(1)), path)
    for read in (torch.load(path, map_location='cpu'),
                 load_url(path.as_uri(), str(tmp_path / 'hub2'))):
        assert torch.equal(read['a'], torch.ones(1))


def test_data_files_are_read_as_plain_values(safe_process, tmp_path, marker):
    load_only_safely()
    annotations = dict(data_list=[dict(img_path='a.jpg', gt_label=np.int64(3),
                                       box=np.eye(2))])
    mmengine.dump(annotations, tmp_path / 'a.pkl')
    read = mmengine.load(tmp_path / 'a.pkl')
    assert str(read) == str(annotations)
    (tmp_path / 'b.pkl').write_bytes(body(payloads.system(marker)))
    with pytest.raises(CheckpointError, match='could run code'):
        mmengine.load(tmp_path / 'b.pkl')
    (tmp_path / 'a.yaml').write_text('a: [1, two]\n')
    assert mmengine.load(tmp_path / 'a.yaml') == dict(a=[1, 'two'])
    (tmp_path / 'b.yaml').write_text(
        f'a: !!python/object/apply:os.system ["touch {marker}"]\n')
    with pytest.raises(CheckpointError, match='no plain YAML'):
        mmengine.load(tmp_path / 'b.yaml')
    assert not has_run(marker)


def test_processes_still_talk_to_each_other(safe_process, image_root):
    """Workers, collectives of objects, data sets in memory: all pickles."""
    load_only_safely()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
    for context in ('fork', 'spawn'):
        loader = DataLoader(
            TensorDataset(torch.arange(4)), 2, num_workers=1,
            multiprocessing_context=context)
        assert torch.cat([batch for batch, in loader]).tolist() == [0, 1, 2, 3]
    tensor = torch.randn(3, dtype=torch.float64)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sent = [dict(a=tensor, b=HistoryBuffer([1.], [1]))]
        received = [None]
        torch.distributed.all_gather_object(received, sent)
        assert torch.equal(received[0][0]['a'], tensor)
    finally:
        torch.distributed.destroy_process_group()
    cfg = runner_cfg(image_root, 'unused').train_dataloader.dataset
    from mmpretrain.registry import DATASETS
    dataset = DATASETS.build(cfg)
    dataset.full_init()
    assert dataset.get_data_info(0)['img_path'].endswith('.jpg')


# Fuzz ----------------------------------------------------------------------

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


# Round trips ---------------------------------------------------------------


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


def everything() -> dict:
    base = torch.randn(4, 6)
    dtypes = (torch.bfloat16, torch.half, torch.bool, torch.int8, torch.uint8,
              torch.int16, torch.int32, torch.int64, torch.float64,
              torch.complex64, torch.complex128)
    return dict(
        views=[base, base.t(), base[1:, ::2], base.expand(3, 4, 6)],
        dtypes=[torch.randn(3).to(d) for d in dtypes],
        small=[torch.tensor(3.), torch.empty(0), torch.empty(2, 0)],
        parameters=[nn.Parameter(base.clone()),
                    nn.Parameter(torch.ones(2), requires_grad=False)],
        grad=base.clone().requires_grad_(),
        state=nn.BatchNorm1d(3).state_dict(),
        values=[None, True, False, 1, -2**70, 2.5, 1 + 2j, 'é', b'', b'ab',
                bytearray(b'x'), slice(1, None, 2), {1, 2}, frozenset('a'),
                (), (1, (2, )), {}, {'a': {(1, 'b'): None}}],
        ordered=OrderedDict(b=1, a=2),
        torch=[torch.float32, torch.Size([1, 2]), torch.device('cpu')],
        numpy=[np.arange(6.).reshape(2, 3), np.asfortranarray(np.eye(2)),
               np.arange(3, dtype='>i4'), np.array(['ab', 'c']),
               np.array([], np.int8), np.float64(2), np.bool_(True),
               np.str_('x')],
        history=HistoryBuffer([1, 2.], [1, 1], max_length=7))


@pytest.mark.parametrize('zipped', [True, False])
def test_all_is_read_as_torch_reads_it(zipped, tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(everything(), path, _use_new_zipfile_serialization=zipped)
    theirs = torch.load(path, weights_only=False)
    with open(path, 'rb') as opened:
        for source in (opened, io.BytesIO(path.read_bytes()), path):
            ours = load_file(source)
            assert_same(theirs, ours)
    assert len({v.untyped_storage().data_ptr() for v in ours['views']}) == 1
    assert ours['state']._metadata == theirs['state']._metadata
    ours['views'][0].add_(1)  # what is read can be written
    ours['numpy'][0][0] = 1
    check_whole(str(path))


@pytest.mark.parametrize('protocol', range(6))
def test_pickles_of_all_protocols(protocol):
    values = everything()
    plain = {k: values[k] for k in ('values', 'ordered', 'numpy', 'history')}
    if protocol < 2:  # other forms, which torch never wrote
        plain = [None, True, 1, -2**70, 2.5, 'é', 'a', (1, ), [2], {'b': 3}]
    content = pickle.dumps(plain, protocol=protocol)
    assert_same(pickle.loads(content), read_bytes(content))


def test_other_forms_are_read_as_plain_values(tmp_path):
    """What is known, but no plain value, becomes one."""
    from argparse import Namespace
    torch.save(
        dict(
            model=dict(a=torch.ones(1)),
            args=Namespace(lr=.1, names=['a']),
            path=Path('/a/b'),
            config=Config(dict(a=dict(b=1))).a,
            lists=defaultdict(list, a=[1])), tmp_path / 'a.pth')
    read = load_file(tmp_path / 'a.pth')
    assert read['args'] == dict(lr=.1, names=['a'])
    assert read['path'] == '/a/b' and read['config'] == dict(b=1)
    assert read['lists'] == dict(a=[1])
    assert list(read_checkpoint(str(tmp_path / 'a.pth')).state) == ['a']


def test_map_location_is_torchs(tmp_path):
    path = tmp_path / 'a.pth'
    shared = torch.randn(4)
    torch.save([shared, shared[:2]], path)
    for where in ('meta', torch.device('meta'), {'cpu': 'meta'}):
        assert load_file(path, where)[0].device.type == 'meta'
    asked = []

    def place(storage, location):
        asked.append(location)
        return storage

    one, other = load_file(path, place)
    assert asked == ['cpu'] and torch.equal(one, shared)
    assert one.data_ptr() == other.data_ptr()
    # where there is none
    content = path.read_bytes().replace(b'cpu', b'xpu')
    with pytest.raises(CheckpointError, match='damaged'):
        load_file(io.BytesIO(content))
    if not torch.cuda.is_available():
        with pytest.raises(CheckpointError, match="map_location='cpu'"):
            load_file(path, 'cuda')


def test_big_endian_files(tmp_path):
    values = [torch.arange(3, dtype=torch.int32), torch.randn(2)]
    torch.save(values, tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as little, zipfile.ZipFile(
            tmp_path / 'b.pth', 'w') as big:
        for name in little.namelist():
            content = little.read(name)
            if '/data/' in name:
                content = np.frombuffer(content, '<u4').byteswap().tobytes()
            big.writestr(name, b'big' if name.endswith('byteorder')
                         else content)
    assert_same(values, load_file(tmp_path / 'b.pth'))


def test_a_runners_own_checkpoint(image_root, tmp_path):
    """With AdamW's state and the log history, as mmengine writes it."""
    runner = Runner.from_cfg(runner_cfg(image_root, tmp_path))
    runner.train()
    path = tmp_path / 'iter_2.pth'
    before = list(torch.serialization.get_safe_globals())
    assert_same(torch.load(path, weights_only=False), load_file(path))
    assert torch.serialization.get_safe_globals() == before
    # mmengine's own runner resumes it through the same reader
    cfg = runner_cfg(image_root, tmp_path, **{'train_cfg.max_iters': 3})
    again = Runner.from_cfg(cfg)
    again.resume(str(path))
    assert again.iter == 2
    assert len(again.message_hub.get_scalar('train/loss').data[0]) == 2


def test_plain_checkpoints_need_no_class(image_root, tmp_path):
    """What to_plain has made is read by torch alone, and resumed by all."""
    cfg = runner_cfg(image_root, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    checkpoint = load_file(tmp_path / 'iter_2.pth')
    for key in ('meta', 'message_hub'):
        checkpoint[key] = to_plain(checkpoint[key])
    path = tmp_path / 'plain.pth'
    torch.save(checkpoint, path)
    with torch.serialization.safe_globals([]):
        torch.load(path, weights_only=True)
    cfg.train_cfg.max_iters = 3
    for kind in (Runner, ResumableRunner):
        again = kind.from_cfg(cfg)
        again.resume(str(path))
        was = runner.message_hub.get_scalar('train/loss')
        assert_same(was, again.message_hub.get_scalar('train/loss'))


def test_files_of_other_libraries(tmp_path):
    vit = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, num_classes=2, depth=1)
    torch.save(vit.state_dict(), tmp_path / 'timm.pth')
    for path in ('timm.pth', 'timm.safetensors'):
        write_checkpoint(str(tmp_path / path), vit.state_dict(), {})
        state = read_checkpoint(str(tmp_path / path)).state
        assert_same(dict(sorted(vit.state_dict().items())),
                    dict(sorted(state.items())))
        check_whole(str(tmp_path / path))
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    scripted.save(str(tmp_path / 'script.pth'))
    with pytest.raises(CheckpointError, match='TorchScript'):
        read_checkpoint(str(tmp_path / 'script.pth'))
    torch.save(nn.Linear(2, 2), tmp_path / 'module.pth')
    with pytest.raises(CheckpointError, match='torch.nn.modules.linear.Lin'):
        read_checkpoint(str(tmp_path / 'module.pth'))


# Damage --------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A checkpoint, as bytes, and what it holds."""
    model = build(model_cfg(width=16, depth=1))
    path = tmp_path_factory.mktemp('whole') / 'a.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(iter=1)), path)
    return path.read_bytes(), load_file(path)


def read_damaged(content: bytes, path: Path):
    """Give what is read, or None where the damage is found."""
    path.write_bytes(content)
    try:
        check_whole(str(path))
        found = False
    except CheckpointError as error:
        assert path.name in str(error) and '\n' not in str(error)
        found = True
    try:
        return load_file(path)
    except CheckpointError as error:
        assert path.name in str(error) and '\n' not in str(error)
        assert found, f'check_whole did not see: {error}'
        return None


def test_files_cut_off_emptied_or_zeroed(whole, tmp_path):
    content, _ = whole
    path = tmp_path / 'a.pth'
    cuts = [0, 1, 3, 4, 100, *range(0, len(content), len(content) // 50),
            len(content) - 1]
    for cut in cuts:
        assert read_damaged(content[:cut], path) is None, cut
    assert read_damaged(bytes(len(content)), path) is None
    with pytest.raises(CheckpointError, match='there is no checkpoint'):
        check_whole(str(tmp_path / 'none.pth'))


def test_a_flipped_bit_is_found_in_every_record(whole, tmp_path):
    content, _ = whole
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = [i for i in archive.infolist() if i.file_size]
    for info in infos:
        header = content[info.header_offset:info.header_offset + 30]
        start = info.header_offset + 30 + sum(
            int.from_bytes(header[i:i + 2], 'little') for i in (26, 28))
        for position in (start, start + info.file_size - 1):
            broken = bytearray(content)
            broken[position] ^= 1
            (tmp_path / 'a.pth').write_bytes(broken)
            with pytest.raises(CheckpointError, match='a.pth is damaged'):
                check_whole(str(tmp_path / 'a.pth'))
    # torch's own reader takes the last of them
    torch.load(tmp_path / 'a.pth', weights_only=True)


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damage_is_found_or_does_no_harm(whole, tmp_path_factory, data):
    """Wherever it is: in a record, a header, the directory, between them."""
    content, value = whole
    broken = bytearray(content)
    start = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        broken[start] ^= 1 << data.draw(st.integers(0, 7))
    else:
        broken[start:start + 4096] = bytes(len(broken[start:start + 4096]))
    path = tmp_path_factory.getbasetemp() / 'broken.pth'
    read = read_damaged(bytes(broken), path)
    if read is not None:
        assert_same(value, read)


def test_legacy_files_that_are_cut_off(tmp_path):
    torch.save(dict(a=torch.randn(30), b=torch.ones(2)), tmp_path / 'a.pth',
               _use_new_zipfile_serialization=False)
    content = (tmp_path / 'a.pth').read_bytes()
    for cut in range(0, len(content), 7):
        assert read_damaged(content[:cut], tmp_path / 'b.pth') is None, cut
