"""Real training steps through mmengine's Runner, on image files."""
import json
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from helpers import (QUICK, ROOT, SMALL, build, check_threads, model_cfg,
                     note_threads, run_tool, runner_cfg)
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner

from cmae_mm.engine import AutoAmpOptimWrapper, ResumableRunner


def train(cfg) -> BaseModel:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.model


def test_two_steps_on_image_files(image_root, tmp_path):
    model = train(runner_cfg(image_root, tmp_path))
    assert model.target.steps == 2
    log = next(tmp_path.glob('*/vis_data/scalars.json')).read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    lines = [line for line in lines if 'loss' in line]
    assert len(lines) == 2
    for line in lines:
        assert line['loss'] == pytest.approx(
            line['loss_rc'] + line['loss_ct'], rel=1e-4)
    assert (tmp_path / 'iter_2.pth').exists()


def test_target_moves_once_per_optimizer_step(image_root, tmp_path):
    cfg = runner_cfg(
        image_root, tmp_path, **{
            'train_cfg.max_iters': 7,
            'optim_wrapper.accumulative_counts': 3
        })
    steps, moved = [], []
    runner = Runner.from_cfg(cfg)
    model = runner.model

    from mmengine.hooks import Hook

    class Watch(Hook):

        def after_train_iter(self, runner, *args, **kwargs):
            steps.append(int(model.target.steps))
            value = model.target.encoder.cls_token.clone()
            moved.append(value)

    runner.register_hook(Watch())
    runner.train()
    # two whole accumulations, and the rest of one at the end
    assert steps == [0, 0, 1, 1, 1, 2, 3]
    assert torch.equal(moved[3], moved[4])
    assert not torch.equal(moved[4], moved[5])


def test_accumulation_equals_the_big_batch():
    """Reconstruction alone, no BatchNorm: the same trajectory."""
    torch.manual_seed(0)
    images = torch.randn(3, 8, 3, 32, 32)
    cfg = model_cfg(contrastive=False)
    trajectories = []
    for micro in (8, 2):
        torch.manual_seed(1)
        model = build(cfg).double()
        masks = [model.backbone.generate_mask(8, 'cpu') for _ in range(3)]
        wrapper = AutoAmpOptimWrapper(
            optimizer=torch.optim.SGD(
                [p for p in model.parameters() if p.requires_grad], lr=0.1),
            accumulative_counts=8 // micro)
        wrapper.initialize_count_status(model, 0, 3 * 8 // micro)
        for batch, mask in zip(images.double(), masks):
            for start in range(0, 8, micro):
                part = slice(start, start + micro)
                model.backbone.generate_mask = Mock(return_value=mask[part])
                with wrapper.optim_context(model):
                    loss = model.loss(batch[part])['loss_rc']
                wrapper.update_params(loss)
        trajectories.append(dict(model.named_parameters()))
    for name, value in trajectories[0].items():
        torch.testing.assert_close(
            value, trajectories[1][name], rtol=1e-9, atol=1e-11)


def test_resuming_matches_an_uninterrupted_run(image_root, tmp_path):
    """Bit by bit; test_exact_resume.py does it with kills and more."""

    def run(folder):
        runner = ResumableRunner.from_cfg(
            runner_cfg(
                image_root, folder, **{
                    'train_cfg.max_iters': 6,
                    'default_hooks.checkpoint.interval': 3,
                    'default_hooks.checkpoint.max_keep_ckpts': 2,
                    'custom_hooks.1.end_momentum': 1.0,
                    'resume': True,
                }))
        runner.train()
        return runner.model

    whole = run(tmp_path / 'whole')
    # as if killed after the third step
    part = tmp_path / 'part'
    part.mkdir()
    (part / 'iter_3.pth').write_bytes(
        (tmp_path / 'whole' / 'iter_3.pth').read_bytes())
    resumed = run(part)
    assert resumed.target.steps == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_without_accelerator_trains_in_float32_and_logs(monkeypatch):
    said = []
    monkeypatch.setattr(
        'cmae_mm.engine.optim_wrapper.has_accelerator',
        lambda: False)
    monkeypatch.setattr(
        'cmae_mm.engine.optim_wrapper.print_log',
        lambda text, **kwargs: said.append(text))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    wrapper = AutoAmpOptimWrapper(optimizer=optimizer, dtype='bfloat16')
    assert len(said) == 1 and 'float32 instead of bfloat16' in said[0]
    with wrapper.optim_context(torch.nn.Linear(2, 2)):
        assert not torch.is_autocast_cpu_enabled()
    AutoAmpOptimWrapper(optimizer=optimizer, dtype='float32')
    assert len(said) == 1
    with pytest.raises(ValueError, match="got 'int8'"):
        AutoAmpOptimWrapper(optimizer=optimizer, dtype='int8')
    # its state fits one with a scaler's slot, so that runs can move
    wrapper.load_state_dict(wrapper.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype, scales', [('bfloat16', False),
                                           ('float16', True)])
def test_mixed_precision_on_a_gpu(dtype, scales):
    optimizer = torch.optim.SGD(
        [torch.nn.Parameter(torch.ones(2, device='cuda'))], lr=0.1)
    wrapper = AutoAmpOptimWrapper(optimizer=optimizer, dtype=dtype)
    assert wrapper.loss_scaler.is_enabled() == scales
    with wrapper.optim_context(torch.nn.Linear(2, 2)):
        assert torch.get_autocast_dtype('cuda') == getattr(torch, dtype)


def test_merged_groups_have_mmengines_settings():
    """The same settings per parameter, in few groups."""
    cfg = Config.fromfile(ROOT / 'configs/_base_/schedules/adamw_bs4096.py')
    model = build(model_cfg())
    settings = {}
    for cls in (DefaultOptimWrapperConstructor,
                OPTIM_WRAPPER_CONSTRUCTORS.get(
                    'mmpretrain.GroupedOptimWrapperConstructor')):
        optim_cfg = cfg.optim_wrapper.to_dict()
        optim_cfg.pop('constructor')
        paramwise = optim_cfg.pop('paramwise_cfg')
        groups = cls(optim_cfg, paramwise)(model).optimizer.param_groups
        settings[cls] = ({
            id(p): (g['lr'], g['weight_decay'])
            for g in groups
            for p in g['params']
        }, len(groups))
    (default, many), (merged, few) = settings.values()
    assert merged == default and len(merged) == len(
        [p for p in model.parameters() if p.requires_grad])
    assert few <= 3 < many
    decayed = {
        n
        for n, p in model.named_parameters()
        if p.requires_grad and merged[id(p)][1] > 0
    }
    # vectors and tokens are not decayed
    assert all(p.ndim >= 2 and 'token' not in n
               for n, p in model.named_parameters() if n in decayed)


def test_checks_before_the_first_step(image_root, tmp_path):
    cfg = runner_cfg(image_root, tmp_path, **{
        'train_dataloader.batch_size': 1})
    with pytest.raises(ValueError, match='a single image.*batch_size'):
        train(cfg)
    cfg = runner_cfg(image_root, tmp_path, **{
        'train_dataloader.batch_size': 64})
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    with pytest.raises(ValueError, match='24 images, fewer than .* 64'):
        train(cfg)






def test_train_command_and_its_arguments(image_root, tmp_path):
    out = run_tool(sys.executable, 'tools/train.py', QUICK, '--work-dir',
                   tmp_path, *SMALL, DATA_ROOT=str(image_root))
    assert 'Iter(train) [2/2]' in out
    before = out[:out.index('Iter(train) [')].splitlines()
    assert len(before) <= 15, out
    log = next(tmp_path.glob('*/*.log')).read_text()
    for words in ('System environment:', 'Config:', 'Hooks will be executed',
                  'Optimizer group of'):
        assert words in log and words not in out
    assert 'deprecated' not in out
    if not torch.cuda.is_available():
        assert out.count('training in float32 instead of bfloat16') == 1
    out = run_tool(sys.executable, 'tools/train.py', QUICK, '--work-dir',
                   tmp_path, '--resume', *SMALL, 'train_cfg.max_iters=3',
                   DATA_ROOT=str(image_root))
    assert 'Iter(train) [3/3]' in out and 'Iter(train) [1/3]' not in out


def test_distributed_command(image_root, tmp_path):
    """Two processes, as two GPUs would be used; on CPUs through gloo."""
    out = run_tool(
        'bash', 'tools/dist_train.sh', QUICK, 2, '--work-dir', tmp_path,
        *SMALL, DATA_ROOT=str(image_root), **note_threads(tmp_path),
        CUDA_VISIBLE_DEVICES='' if torch.cuda.device_count() < 2 else '0,1')
    assert 'Iter(train) [2/2]' in out
    state = torch.load(
        tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    assert state['target.steps'] == 2
    check_threads(tmp_path)


def test_configs_without_test_data_raise(tmp_path):
    done = subprocess.run(
        [sys.executable, 'tools/test.py', QUICK, __file__],
        cwd=ROOT,
        capture_output=True,
        text=True)
    assert done.returncode != 0 and 'no test_dataloader' in done.stderr

CLASSIFIER = '''
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer', img_size=32, patch_size=8,
        out_type='avg_featmap', final_norm=False,
        arch=dict(embed_dims=32, num_layers=1, num_heads=2,
                  feedforward_channels=64)),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32))
data_preprocessor = dict(num_classes=2, mean=[120.] * 3, std=[60.] * 3)
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)),
    dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='{{$DATA_ROOT:x}}',
                 data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='{{$DATA_ROOT:x}}',
                 data_prefix='val', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
auto_scale_lr = dict(base_batch_size=8)
'''


def test_the_same_commands_run_a_classifier(image_root, tmp_path):
    config = tmp_path / 'classifier.py'
    config.write_text(CLASSIFIER)
    out = run_tool(sys.executable, 'tools/train.py', config, '--work-dir',
                   tmp_path / 'work', '--amp', '--auto-scale-lr',
                   DATA_ROOT=str(image_root))
    assert 'accuracy/top1' in out
    assert 'lr: 5.0000e-04' in out or '0.001 to 0.0005' in out
    checkpoint = tmp_path / 'work/epoch_1.pth'
    run_tool(sys.executable, 'tools/test.py', config, checkpoint,
             '--work-dir', tmp_path / 'test', '--out', tmp_path / 'out.json',
             '--dump', tmp_path / 'out.pkl', DATA_ROOT=str(image_root))
    metrics = json.loads((tmp_path / 'out.json').read_text())
    out = run_tool('bash', 'tools/dist_test.sh', config, checkpoint, 2,
                   '--out', tmp_path / 'dist.json', '--work-dir',
                   tmp_path / 'test2',
                   DATA_ROOT=str(image_root), CUDA_VISIBLE_DEVICES='',
                   **note_threads(tmp_path))
    check_threads(tmp_path)
    assert metrics == json.loads((tmp_path / 'dist.json').read_text())
    assert (tmp_path / 'out.pkl').exists()
