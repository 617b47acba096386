"""Steps that are not finite are skipped, counted and logged."""
import copy
import json

import numpy as np
import pytest
import torch
from helpers import (build, make_views_in_workers, model_cfg, needs_torch,
                     runner_cfg)
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmpretrain.registry import TRANSFORMS

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.engine import AutoAmpOptimWrapper, NonFiniteError, ResumableRunner
from cmae_mm.engine.optim_wrapper import StepGuard


@TRANSFORMS.register_module(force=True)
class SpoilImage(BaseTransform):
    """Make views float, and those of one image nan."""

    def __init__(self, index=None):
        self.index = index

    def transform(self, results):
        views = [v.astype(np.float32) for v in results['img']]
        if results['sample_idx'] == self.index:
            views[0][:] = np.nan
        results['img'] = views
        return results


def config(image_root, work_dir, index=None, **overrides):
    cfg = runner_cfg(image_root, work_dir, **overrides)
    make_views_in_workers(cfg, dict(type='SpoilImage', index=index))
    return cfg


def scalars(folder, name):
    path = next(folder.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row.get(name) for row in rows if 'loss' in row]


def test_replaced_buffers_are_restored():
    """Buffers may be replaced, for instance by assign=True."""
    model, guard = torch.nn.Sequential(torch.nn.BatchNorm1d(2)), StepGuard(1)
    guard.keep_buffers(model)
    model[0].running_mean = torch.ones(2)
    model[0].register_buffer('late', torch.ones(2))
    guard.keep_buffers(model)
    model(torch.randn(4, 2) + 9)
    model[0].late.zero_()
    guard.restore_buffers()
    assert model[0].running_mean.eq(1).all() and model[0].late.eq(1).all()


class LeaveOut(Hook):
    """Undo all that the iterations of one optimizer step have done."""

    priority = 'HIGHEST'

    def __init__(self, first, last):
        self.first, self.last = first, last

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.first:
            self.kept = copy.deepcopy((runner.model.state_dict(),
                                       runner.optim_wrapper.state_dict()))

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.last:
            runner.model.load_state_dict(self.kept[0])
            runner.optim_wrapper.load_state_dict(self.kept[1])


@pytest.mark.parametrize('accumulate', [1, 2])
def test_one_image_costs_one_step_and_no_more(image_root, tmp_path,
                                              accumulate):
    """Matches a run in which that step was undone."""
    options = {
        'train_cfg.max_iters': 6,
        'optim_wrapper.accumulative_counts': accumulate,
        'optim_wrapper.clip_grad': dict(max_norm=3.),
    }
    spoilt = ResumableRunner.from_cfg(
        config(image_root, tmp_path / 'spoilt', 5, **options))
    order = [int(i) for _, i in zip(
        range(24), iter(spoilt.build_dataloader(
            spoilt.cfg.train_dataloader, seed=0).sampler))]
    at = order.index(5) // 4  # the iteration that has it
    first = at - at % accumulate
    spoilt.train()
    reference = ResumableRunner.from_cfg(
        config(image_root, tmp_path / 'reference', None, **options))
    reference.register_hook(LeaveOut(first, first + accumulate - 1))
    reference.train()
    expected = reference.model.state_dict()
    for name, value in spoilt.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert spoilt.model.target.steps == 6 // accumulate - 1
    counts = scalars(tmp_path / 'spoilt', 'skipped_steps')
    end = first + accumulate - 1
    assert counts[:end] == [None] * end and counts[-1] == 1
    log = next((tmp_path / 'spoilt').glob('*/*.log')).read_text()
    warned = [x for x in log.splitlines() if 'Skipped the step' in x]
    assert len(warned) == 1 and f'iteration {end + 1},' in warned[0]
    named = set(warned[0].split('Images: ')[1].rstrip('.').split(', '))
    batch = order[first * 4:(end + 1) * 4]
    paths = [spoilt.train_dataloader.dataset.get_data_info(i)['img_path']
             for i in batch]
    assert {n.rstrip('.') for n in named} == set(paths)


@pytest.mark.parametrize('what, options, words', [
    ('data', {'data_preprocessor.std': [0., 0., 0.]}, ['loss nan']),
    ('rate', {'optim_wrapper.optimizer.lr': 1e6}, ['rate: 1e+06']),
])
def test_training_stops_with_a_report_after_skipped_steps(
        image_root, tmp_path, what, options, words):
    cfg = config(
        image_root, tmp_path, **{
            'train_cfg.max_iters': 40,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': 2,
            'optim_wrapper.max_skipped': 4,
            **options
        })
    runner = ResumableRunner.from_cfg(cfg)
    with pytest.raises(NonFiniteError) as raised:
        runner.train()
    said = str(raised.value)
    for word in [
            '4 steps in a row', 'Gradient norms: backbone ',
            'neck.pixel_decoder ', 'neck.feature_decoder ',
            'neck.projector ', 'head.contrastive ', 'class0', '.jpg',
            'clip_grad=dict(max_norm=3.)', 'optim_wrapper.max_skipped=4',
            *words
    ]:
        assert word in said, (word, said)
    assert runner.iter < 40
    # What is on disk are good parameters, those that the run has now.
    found = sorted(tmp_path.glob('*.pth'), key=lambda p: p.stat().st_mtime_ns)
    assert found
    saved = torch.load(found[-1], weights_only=False)['state_dict']
    for name, value in runner.model.state_dict().items():
        assert value.isfinite().all(), name
        assert torch.equal(saved[name], value), name


def wrapper_of(model, **kwargs):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return AutoAmpOptimWrapper(
        optimizer=torch.optim.SGD(parameters, lr=0.1), dtype='float32',
        **kwargs)


def make_step(wrapper, model, factor):
    """One step; gradients are ``factor``, and the loss a multiple of it."""
    with wrapper.optim_context(model):
        loss = factor * sum(p.sum() for p in model.parameters())
    wrapper.update_params(loss)


@needs_torch(2, 3, 'a loss scaler on a CPU')
def test_the_loss_scalers_own_skips_are_normal():
    MessageHub.get_instance('scaler')
    model = torch.nn.Sequential(torch.nn.Linear(2, 2),
                                torch.nn.BatchNorm1d(2))
    wrapper = wrapper_of(model, max_skipped=3)
    wrapper.message_hub = MessageHub.get_instance('scaler')
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.**120)
    before = copy.deepcopy(model.state_dict())

    def count(name):
        key = f'train/{name}'
        scalars = wrapper.message_hub.log_scalars
        return scalars[key].current() if key in scalars else 0

    # Finite, but not when it is scaled.
    make_step(wrapper, model, 1e4)
    make_step(wrapper, model, 1e4)
    assert count('scaler_steps') == 2 and count('skipped_steps') == 0
    assert wrapper.loss_scaler.get_scale() == 2.**118
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    # A step that is made ends the row, and moves by lr times the gradient.
    make_step(wrapper, model, 1.)
    torch.testing.assert_close(model[0].weight, before['0.weight'] - 0.1)
    # A loss that is not finite is not the scale's fault.
    scale = wrapper.loss_scaler.get_scale()
    model[1].running_mean.fill_(3.)
    for _ in range(2):
        with wrapper.optim_context(model):
            model[1].running_mean.fill_(torch.nan)
            loss = torch.nan * model[0].weight.sum()
        wrapper.update_params(loss)
    assert count('skipped_steps') == 2
    assert wrapper.loss_scaler.get_scale() == scale
    assert model[1].running_mean.tolist() == [3., 3.]
    with pytest.raises(NonFiniteError, match='3 steps in a row'):
        make_step(wrapper, model, torch.nan)


@pytest.mark.parametrize('clip', [
    dict(max_norm=0.5), dict(max_norm=1e3), dict(max_norm=.5, norm_type=1),
    dict(max_norm=.5, norm_type='inf'), dict(type='value', clip_value=0.01)
])
def test_clipping_is_torchs(clip):
    torch.manual_seed(0)
    model = build(model_cfg())
    images = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    wrapper = wrapper_of(model, clip_grad=dict(clip))
    with wrapper.optim_context(model):
        loss = sum(v for k, v in model.loss(images).items() if 'loss' in k)
    loss.backward(retain_graph=True)
    kwargs = {k: v for k, v in clip.items() if k != 'type'}
    if 'type' in clip:
        torch.nn.utils.clip_grad_value_(parameters, **kwargs)
    else:
        norm = torch.nn.utils.clip_grad_norm_(parameters, **kwargs)
    expected = [b if p.grad is None else b - 0.1 * p.grad
                for b, p in zip(before, parameters)]
    model.zero_grad()
    wrapper.update_params(loss)
    for p, e in zip(parameters, expected):
        torch.testing.assert_close(p.detach(), e, rtol=1e-5, atol=1e-7)
    if 'type' not in clip:
        logged = wrapper.message_hub.get_scalar('train/grad_norm').current()
        assert logged == pytest.approx(float(norm), rel=1e-5)


def test_settings_are_checked_and_plain_wrappers_guarded(image_root,
                                                         tmp_path):
    with pytest.raises(ValueError, match='max_skipped .* got 0'):
        wrapper_of(torch.nn.Linear(1, 1), max_skipped=0)
    clip = dict(type='value', clip_value=None)
    with pytest.raises(ValueError, match='has no clip_value; set optim_wr'):
        wrapper_of(torch.nn.Linear(1, 1), clip_grad=clip)
    assert clip['type'] == 'value'  # not removed from a config
    model = torch.nn.Linear(1, 1)
    for optimizer in (
            torch.optim.AdamW(model.parameters()),
            torch.optim.SGD([{'params': p} for p in model.parameters()],
                            lr=0.1)):
        with pytest.raises(CheckpointError, match='fit the SGD of the config'):
            wrapper_of(model).load_state_dict(optimizer.state_dict())
    cfg = config(image_root, tmp_path)
    cfg.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    runner = ResumableRunner.from_cfg(cfg)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert isinstance(wrapper, AutoAmpOptimWrapper) and not wrapper.autocasts
