"""Files are read as torch and the libraries read them."""
import io
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import runner_cfg
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import scheduler as schedulers
from mmengine.runner import Runner
from payloads import assert_same, read_bytes
from torch import nn

from cmae_mm.checkpoints import (CheckpointError, check_complete,
                                 read_checkpoint, to_plain, write_checkpoint)
from cmae_mm.checkpoints.read import load_file
from cmae_mm.engine import ResumableRunner


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
    check_complete(str(path))


@pytest.mark.parametrize('protocol', range(6))
def test_pickles_of_all_protocols(protocol):
    values = everything()
    plain = {k: values[k] for k in ('values', 'ordered', 'numpy', 'history')}
    if protocol < 2:  # other forms, which torch never wrote
        plain = [None, True, 1, -2**70, 2.5, 'é', 'a', (1, ), [2], {'b': 3}]
    content = pickle.dumps(plain, protocol=protocol)
    assert_same(pickle.loads(content), read_bytes(content))


def test_other_forms_are_read_as_plain_values(tmp_path):
    """Known values that are not plain become plain."""
    from argparse import Namespace
    torch.save(
        dict(
            model=dict(a=torch.ones(1)),
            args=Namespace(lr=.1, names=['a']),
            path=Path('/a/b'),
            config=Config(dict(a=dict(b=1))).a,
            lists=defaultdict(list, a=[1]),
            milestones=Counter([8, 11, 11])), tmp_path / 'a.pth')
    read = load_file(tmp_path / 'a.pth')
    assert read['args'] == dict(lr=.1, names=['a'])
    assert read['path'] == '/a/b' and read['config'] == dict(b=1)
    assert read['lists'] == dict(a=[1])
    assert read['milestones'] == Counter([8, 11, 11])
    assert read['milestones'][9] == 0
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


def test_files_of_another_byte_order_are_refused(tmp_path):
    torch.save([torch.arange(3)], tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as little, zipfile.ZipFile(
            tmp_path / 'b.pth', 'w') as big:
        for name in little.namelist():
            big.writestr(name, b'big' if name.endswith('byteorder')
                         else little.read(name))
    with pytest.raises(CheckpointError, match='another byte order'):
        load_file(tmp_path / 'b.pth')


def test_a_runners_own_checkpoint(image_root, tmp_path):
    """With AdamW's state and the log history, as mmengine writes it."""
    runner = Runner.from_cfg(runner_cfg(image_root, tmp_path))
    runner.train()
    path = tmp_path / 'iter_2.pth'
    safe = getattr(torch.serialization, 'get_safe_globals', list)
    before = list(safe())
    assert_same(torch.load(path, weights_only=False), load_file(path))
    assert safe() == before
    # mmengine's own runner resumes it through the same reader
    cfg = runner_cfg(image_root, tmp_path, **{'train_cfg.max_iters': 3})
    again = Runner.from_cfg(cfg)
    again.resume(str(path))
    assert again.iter == 2
    assert len(again.message_hub.get_scalar('train/loss').data[0]) == 2


SCHEDULERS = dict(
    ConstantLR={}, CosineAnnealingLR=dict(T_max=5),
    CosineRestartLR=dict(
        periods=[2, 3], restart_weights=[1, .5], eta_min=0),
    ExponentialLR=dict(gamma=.9), LinearLR={},
    MultiStepLR=dict(milestones=[2, 2, 4]),
    OneCycleLR=dict(eta_max=1., total_steps=9),
    PolyLR=dict(power=.9), StepLR=dict(step_size=2),
    ReduceOnPlateauLR=dict(monitor='loss', patience=1),
    CosineAnnealingMomentum=dict(T_max=5))


@pytest.mark.parametrize('name', [*SCHEDULERS, 'linear OneCycleLR'])
@pytest.mark.parametrize('protocol', [2, 5])
def test_schedulers_resume(name, protocol, tmp_path):
    """Some keep methods in their state; the next values are the same."""
    strategy, _, kind = name.rpartition(' ')
    options = SCHEDULERS[kind] | (
        dict(anneal_strategy=strategy) if strategy else {})

    def build():
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), .5, momentum=.9)
        return optimizer, getattr(schedulers, kind)(optimizer, **options)

    def step(scheduler):
        if kind == 'ReduceOnPlateauLR':
            scheduler.step(dict(loss=1.))
        else:
            scheduler.step()

    optimizer, scheduler = build()
    for _ in range(3):
        optimizer.step()
        step(scheduler)
    torch.save([optimizer.state_dict(), scheduler.state_dict()],
               tmp_path / 'a.pth', pickle_protocol=protocol)
    states = load_file(tmp_path / 'a.pth')
    again = build()
    for part, state in zip(again, states):
        part.load_state_dict(state)
    for _ in range(4):
        for one, other in ((optimizer, scheduler), again):
            one.step()
            step(other)
        assert_same(optimizer.state_dict(), again[0].state_dict())


OPTIMIZERS = dict(
    Adadelta={}, Adagrad={}, Adam=dict(amsgrad=True), AdamW={}, Adamax={},
    ASGD={}, LBFGS={}, NAdam={}, RAdam={}, RMSprop=dict(centered=True),
    Rprop={}, SGD=dict(lr=1e-3, momentum=.9))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizers_resume(name, tmp_path):
    model = nn.Linear(2, 2)
    optimizer = getattr(torch.optim, name)(
        model.parameters(), **OPTIMIZERS[name])

    def closure():
        loss = model(torch.ones(1, 2)).square().sum()
        model.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.save(optimizer.state_dict(), tmp_path / 'a.pth')
    assert_same(torch.load(tmp_path / 'a.pth', weights_only=False),
                load_file(tmp_path / 'a.pth'))


def test_plain_checkpoints_need_no_class(image_root, tmp_path):
    """torch reads the output of to_plain without mmengine; all can resume."""
    cfg = runner_cfg(image_root, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    checkpoint = load_file(tmp_path / 'iter_2.pth')
    for key in ('meta', 'message_hub'):
        checkpoint[key] = to_plain(checkpoint[key])
    path = tmp_path / 'plain.pth'
    torch.save(checkpoint, path)
    with getattr(torch.serialization, 'safe_globals', nullcontext)([]):
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
        check_complete(str(tmp_path / path))
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    scripted.save(str(tmp_path / 'script.pth'))
    with pytest.raises(CheckpointError, match='TorchScript'):
        read_checkpoint(str(tmp_path / 'script.pth'))
    torch.save(nn.Linear(2, 2), tmp_path / 'module.pth')
    with pytest.raises(CheckpointError, match='torch.nn.modules.linear.Lin'):
        read_checkpoint(str(tmp_path / 'module.pth'))
