"""Tests that need a CUDA device; started by tools/check_gpu.sh.

CMAE_CHECK_DEVICE=cpu runs what can run without one, to try the checks.
"""
import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, require_dense, run_tool, runner_cfg
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from shrunken import shrunken

from cmae_mm.engine import ResumableRunner
from cmae_mm.engine.hooks.step_hooks import DevicePrefetcher

DEVICE = os.environ.get('CMAE_CHECK_DEVICE', 'cuda')
ON_GPU = DEVICE == 'cuda'
pytestmark = pytest.mark.skipif(
    ON_GPU and not torch.cuda.is_available(),
    reason='there is no CUDA device; run tools/check_gpu.sh where there is')
needs_gpu = pytest.mark.skipif(not ON_GPU, reason='needs a CUDA device')
PRETRAINING = 'cmae_vit-b_300e'
STEPS = 4


class Watch(Hook):
    """Writes down what happens in each step."""

    def __init__(self) -> None:
        self.losses, self.memory, self.devices = [], [], set()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.devices.add(str(data_batch['inputs'].device.type) if isinstance(
            data_batch['inputs'], torch.Tensor) else 'list')

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self.losses.append(float(outputs['loss']))
        if ON_GPU:
            torch.cuda.synchronize()
            self.memory.append(torch.cuda.memory_allocated())


def config(name: str, folder, dtype: str = 'bfloat16', **overrides) -> Config:
    """Give a shrunken default config that trains a few steps."""
    cfg = shrunken(name, folder / 'data', folder / 'work', images=8)
    cfg.optim_wrapper.update(
        type='mmpretrain.AutoAmpOptimWrapper', dtype=dtype)
    # An infinite sampler's epochs have no end.
    endless = 'Infinite' in cfg.train_dataloader.sampler.type
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=STEPS) if endless else dict(
            type='EpochBasedTrainLoop', max_epochs=1)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.update(by_epoch=not endless, interval=100)
    cfg.train_dataloader.pin_memory = ON_GPU
    if cfg.model.type != 'CMAE':
        cfg.custom_hooks = []
    cfg.merge_from_dict(overrides)
    return cfg


def train(cfg: Config):
    """Train, and give the runner and what was seen."""
    Visualizer._instance_dict.clear()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = ResumableRunner.from_cfg(cfg)
        watch = Watch()
        runner.register_hook(watch)
        runner.train()
    return runner, watch


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_pretraining(dtype, tmp_path):
    """The ImageNet recipe, from image files, with prefetching."""
    scale = {} if dtype != 'float16' else {
        'optim_wrapper.loss_scale': dict(init_scale=1024.)}
    runner, watch = train(config(PRETRAINING, tmp_path, dtype, **scale))
    assert len(watch.losses) == STEPS
    assert torch.tensor(watch.losses).isfinite().all()
    model = runner.model
    assert {p.device.type for p in model.parameters()} == {DEVICE}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert int(model.target.steps) == STEPS
    assert runner.optim_wrapper.autocasts == (ON_GPU and dtype != 'float32')
    assert runner.optim_wrapper.loss_scaler.is_enabled() == (
        ON_GPU and dtype == 'float16')
    if ON_GPU:
        assert isinstance(runner.train_loop.dataloader, DevicePrefetcher)
        assert watch.devices == {'cuda'}


def test_prefetched_batches_are_the_loaders(tmp_path):
    cfg = config(PRETRAINING, tmp_path)
    runner = ResumableRunner.from_cfg(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader)
    expected = [batch['inputs'] for batch in loader]
    made = [batch['inputs']
            for batch in DevicePrefetcher(loader, torch.device(DEVICE))]
    assert len(made) == len(expected) == STEPS
    for mine, theirs in zip(made, expected):
        assert mine.device.type == DEVICE
        assert torch.equal(mine.cpu(), theirs)


@needs_gpu
def test_float16_skips_a_step_and_its_target_update(tmp_path):
    """A scale beyond float16: the scaler halves it until steps are finite."""
    runner, watch = train(
        config(PRETRAINING, tmp_path, 'float16', **{
            'optim_wrapper.loss_scale': dict(init_scale=2.**40)}))
    wrapper = runner.optim_wrapper
    assert len(watch.losses) == STEPS
    assert wrapper.loss_scaler.get_scale() < 2.**40
    assert int(runner.model.target.steps) < STEPS
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_compiled_pretraining(tmp_path):
    runner, watch = train(
        config(PRETRAINING, tmp_path, compile=True))
    assert torch.tensor(watch.losses).isfinite().all()
    assert int(runner.model.target.steps) == STEPS


def test_activation_checkpointing(tmp_path):
    runner, watch = train(
        config(PRETRAINING, tmp_path, activation_checkpointing=['backbone']))
    assert all(p.grad is not None for p in runner.model.backbone.parameters()
               if p.requires_grad) or int(runner.model.target.steps) == STEPS
    assert torch.tensor(watch.losses).isfinite().all()


@pytest.mark.parametrize('name', [
    'mae_vit-b_300e', 'finetune/vit-b_pt300e_100e_in1k',
    'linear/vit-b_90e_in1k'])
def test_classification_and_mae(name, tmp_path):
    _, watch = train(config(name, tmp_path))
    assert watch.losses and torch.tensor(watch.losses).isfinite().all()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name, library', [
    ('detection/vitdet-b_mask-rcnn_100e_coco', 'mmdet'),
    ('detection/vitdet-b_cascade-mask-rcnn_100e_coco', 'mmdet'),
    ('segmentation/upernet-b_160k_ade20k-512x512', 'mmseg')])
def test_dense(name, library, dtype, tmp_path):
    require_dense(library)
    _, watch = train(config(name, tmp_path, dtype))
    assert watch.losses and torch.tensor(watch.losses).isfinite().all()


@needs_gpu
def test_memory_is_steady_and_freed(tmp_path, record_property):
    """Steps keep nothing, and a run that is over leaves nothing."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    runner, watch = train(config(
        PRETRAINING, tmp_path, **{'train_cfg.max_epochs': 3}))
    # The optimizer's state comes with the first step.
    assert max(watch.memory[3:]) - min(watch.memory[3:]) < 1 << 20
    record_property('peak MB', torch.cuda.max_memory_allocated() >> 20)
    runner.message_hub._instance_dict.clear()
    del runner, watch
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 1 << 20


@pytest.mark.parametrize('processes', [1, 2])
def test_processes(processes, tmp_path):
    """Through NCCL on GPUs: the same model, different masks."""
    if ON_GPU and torch.cuda.device_count() < processes:
        pytest.skip(f'there are no {processes} GPUs')
    seen = on_processes(processes, tmp_path, dict(
        pretraining=PRETRAINING,
        finetuning='finetune/vit-b_pt300e_100e_in1k'))
    for ranks in seen.values():
        assert len({m for r in ranks for m in r['masks']}) == sum(
            len(r['masks']) for r in ranks)


def on_processes(processes, folder, names, **overrides):
    """Train configs on ranks, which end alike; give what each rank saw."""
    for kind, name in names.items():
        cfg = config(name, folder / kind, **overrides.get(kind, {}))
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
        cfg.default_hooks.checkpoint.by_epoch = False
        cfg.dump(folder / f'{kind}.py')
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node', str(processes),
         str(ROOT / 'tests/run_ranks.py'), str(folder)],
        capture_output=True, text=True, timeout=300, env=dict(
            os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path])))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    seen = {}
    for kind in names:
        seen[kind] = [
            json.loads((folder / f'{kind}.{rank}.json').read_text())
            for rank in range(processes)]
        assert len({rank['parameters'] for rank in seen[kind]}) == 1
        assert len({rank.get('target') for rank in seen[kind]}) == 1
    return seen


def test_evaluation_commands(image_root, tmp_path):
    """Each evaluates a checkpoint on the device and prints its JSON line."""
    cfg = runner_cfg(image_root, tmp_path / 'work')
    ResumableRunner.from_cfg(cfg).train()
    checkpoint = tmp_path / 'work/iter_2.pth'
    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    common = [image_root, checkpoint, '--json', '--num-workers', 0,
              '--work-dir', tmp_path / 'evaluation']
    for command, extra in (('knn', ['--ks', 3]), ('linear', ['--epochs', 2]),
                           ('low-shot', ['--shots', 2])):
        out = run_tool('cmae', command, *common, *extra)
        line = [s for s in out.splitlines() if s.startswith('{"checkpoint')]
        assert json.loads(line[-1]), command


def test_training_and_testing_a_classifier_by_command(image_root, tmp_path):
    options = [
        '--cfg-options', 'data_preprocessor.num_classes=2',
        'model.head.num_classes=2', 'train_cfg.max_epochs=1',
        *(f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
          for key in (f'dataset.data_root={image_root}', 'batch_size=8',
                      'num_workers=0', 'persistent_workers=False')),
        'val_dataloader.dataset.data_prefix=val',
        'test_dataloader.dataset.data_prefix=val',
        'model.backbone.img_size=48']
    config_file = 'configs/cifar10/finetune_vit-mini_10e.py'
    run_tool(sys.executable, 'tools/train.py', config_file, '--work-dir',
             tmp_path, *options,
             'train_dataloader.dataset.pipeline.2.scale=48')
    run_tool(sys.executable, 'tools/test.py', config_file,
             tmp_path / 'epoch_1.pth', '--work-dir', tmp_path / 'test',
             '--out', tmp_path / 'out.json', *options)
    assert 'accuracy/top1' in json.loads((tmp_path / 'out.json').read_text())
