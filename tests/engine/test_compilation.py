"""compile=True: one graph per part, no recompilation, the same training.

Graphs are run by torch's own operators (backend aot_eager), which needs no C++
compiler and gives the same bits; that they are made is what is tested.
"""
import importlib
import logging
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, needs_torch, runner_cfg
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from shrunken import shrunken
from torch._dynamo.utils import counters

from cmae_mm.engine import ResumableRunner
from cmae_mm.engine.device import adapt_to_device
from cmae_mm.engine.model_options import _PARTS, compile_parts
from cmae_mm.models import augmentation

EAGER = dict(backend='aot_eager')
# On a CPU the views are not compiled.
GRAPHS = len(_PARTS) - 1


class Watch(Hook):
    """Store losses; raise at a recompilation after two steps."""

    def __init__(self) -> None:
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self.losses.append(float(outputs['loss']))
        torch._dynamo.config.error_on_recompile = len(self.losses) >= 2


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    Visualizer._instance_dict.clear()
    with torch._dynamo.config.patch(error_on_recompile=False):
        yield


def train(cfg):
    runner = ResumableRunner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    torch._dynamo.config.error_on_recompile = False
    return runner, watch.losses


def state_of(runner):
    model = runner.model
    return (model.module if is_model_wrapper(model) else model).state_dict()


@needs_torch(2, 3, 'compiling')
def test_compiled_training_matches_and_resumes(
        image_root, tmp_path, monkeypatch):
    steps = {'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 2,
             'default_hooks.checkpoint.max_keep_ckpts': 2}
    plain, expected = train(runner_cfg(image_root, tmp_path / 'plain',
                                       **steps))
    assert counters['stats']['unique_graphs'] == 0
    cfg = runner_cfg(image_root, tmp_path / 'made', **steps, compile=EAGER)
    made, losses = train(cfg)
    assert counters['stats']['unique_graphs'] == GRAPHS
    assert not counters['graph_break']
    assert losses == pytest.approx(expected, rel=1e-5)
    assert list(made.model.state_dict()) == list(plain.model.state_dict())
    for name, value in state_of(made).items():
        torch.testing.assert_close(value, state_of(plain)[name], rtol=1e-3,
                                   atol=1e-5, msg=name)
    # a file of the one is a file of the other
    saved = torch.load(tmp_path / 'made/iter_2.pth', weights_only=False)
    assert not [k for k in saved['state_dict'] if '_orig_mod' in k]
    # ranks, here one through gloo, go on by it
    again = runner_cfg(
        image_root, tmp_path / 'ranks', **steps, compile=EAGER, resume=True,
        resume_from=str(tmp_path / 'made/iter_2.pth'), launcher='pytorch')
    monkeypatch.setenv('LOCAL_RANK', '0')
    dist.init_process_group(
        'gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        adapt_to_device(again)
        ranks, losses = train(again)
        assert is_model_wrapper(ranks.model)
    finally:
        dist.destroy_process_group()
    assert losses == pytest.approx(expected[2:], rel=1e-5)
    for name, value in state_of(ranks).items():
        torch.testing.assert_close(value, state_of(made)[name], rtol=1e-3,
                                   atol=1e-5, msg=name)


@needs_torch(2, 3, 'compiling')
@pytest.mark.parametrize('name', ['cmae_convvit-b_300e', 'mae_vit-b_300e'])
def test_other_models_compile(name, tmp_path):
    cfg = shrunken(name, tmp_path / 'data', tmp_path / 'work', images=6)
    cfg.optim_wrapper.type = 'mmpretrain.AutoAmpOptimWrapper'
    cfg.optim_wrapper.dtype = 'float32'
    cfg.param_scheduler = []
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    losses = {}
    for key, options in dict(plain=False, made=EAGER).items():
        cfg.compile, cfg.experiment_name = options, f'{name}_{key}'
        cfg.work_dir = str(tmp_path / key)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            _, losses[key] = train(cfg.copy())
    assert len(losses['made']) == 3
    assert losses['made'] == pytest.approx(losses['plain'], rel=1e-5)
    assert not counters['graph_break']
    missing = 3 if name.startswith('mae') else 0  # the target's, G_f
    assert counters['stats']['unique_graphs'] == GRAPHS - missing


def test_missing_compiler_raises(image_root, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    cfg = runner_cfg(image_root, tmp_path, compile=True)
    with pytest.raises(RuntimeError, match=re.escape(
            'compile=True on a CPU needs a C++ compiler')):
        ResumableRunner.from_cfg(cfg).train()


@needs_torch(2, 3, 'compiling')
def test_benchmark_times_the_compiled_step(monkeypatch):
    """Counting FLOP, or timing parts, must not switch the graphs off."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmarks'))
    benchmark = importlib.import_module('benchmark_step')
    contenders = importlib.import_module('step_contenders')
    timing = importlib.import_module('step_timing')
    # --host replaces it.
    monkeypatch.setattr(augmentation, 'is_batched', augmentation.is_batched)
    monkeypatch.setattr(logging, 'disable', lambda level: None)
    runs, seen = [], []

    def counting(graph, inputs):

        def run(*args):
            runs.append(1)
            return graph(*args)

        return run

    def watch(owner, name, steps):
        method = getattr(owner, name)

        def watched(self, work, *times):
            before = len(runs)
            result = method(self, work, *times)
            counts = isinstance(getattr(self, 'clock', None), timing._Launches)
            if isinstance(work, contenders.Step) and not counts:
                seen.append((len(runs) - before) / steps(*times))
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(timing.Clock, 'time', lambda times=1: times)
    watch(timing.Breakdown, 'of', lambda: 1)
    monkeypatch.setattr(contenders, 'compile_parts', partial(
        compile_parts, backend=counting))
    monkeypatch.setattr(timing, 'matmul_peak', lambda *args: 1.)
    monkeypatch.setattr(timing, 'memory_bandwidth', lambda *args: 1.)
    result = benchmark.measure(benchmark.read_arguments([
        str(ROOT / 'configs/quickstart/cmae_vit-mini_tiles.py'),
        '--batch-size', '4', '--rounds', '2', '--device', 'cpu', '--compile',
        '--host']))
    assert seen == [GRAPHS] * len(seen) and len(seen) >= 6
    assert result['compiled'] and result['gflop_per_image'] > 0
    # The check for finite steps; nothing else may wait for a device.
    assert result['waits'] == ['tolist']
    launches = result['launches_of_parts']
    assert sum(launches.values()) == result['launches'] < 700
    # In all parts, also in the backward pass, which runs below Python.
    assert min(launches.values()) > 0 and launches['backward'] > 100


def test_compile_errors_are_one_sentence(image_root, tmp_path):
    """As with torch 2.1, which does not get through mmengine's decorators."""

    def refuse(graph, inputs):
        raise NotImplementedError('this backend knows no operation')

    with pytest.raises(RuntimeError) as error:
        train(runner_cfg(image_root, tmp_path, compile=dict(backend=refuse)))
    text = str(error.value)
    assert 'cannot compile' in text and 'remove compile' in text
    assert text.count('\n') == 0
