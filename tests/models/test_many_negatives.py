"""A small batch with a large one's negatives: a queue, cached gradients."""
import collections

import pytest
import torch
from helpers import build, model_cfg, runner_cfg
from test_contrastive_head import double_loop, head

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.engine import ResumableRunner
from cmae_mm.engine.resuming import fit
from cmae_mm.models import CMAEQueueHead


def queue_head(**kwargs):
    return head(CMAEQueueHead, scale_by_temperature=False, **kwargs)


@pytest.mark.parametrize('length', [3, 8, 10])
def test_the_queue_holds_the_latest_targets(length):
    """Against a deque and the formula, from empty to turned over."""
    module, latest = queue_head(queue_length=length), collections.deque(
        maxlen=length)
    plain = head(scale_by_temperature=False)
    plain.load_state_dict(module.state_dict(), strict=False)
    for _ in range(5):
        proj_s, proj_t = torch.randn(2, 4, 8)
        pred = module.predictor([proj_s])[0]
        targets = torch.cat([proj_t, *[t[None] for t in latest]])
        losses = module.loss(proj_s, proj_t)
        assert losses['loss_ct'].item() == pytest.approx(
            double_loop(pred, targets, 0.07), rel=1e-4)
        own = plain.loss(proj_s, proj_t)
        for name in ('rho_pos', 'rho_neg', 'acc_ct'):
            torch.testing.assert_close(losses[name], own[name])
        latest.extend(proj_t)
    assert int(module.queue_filled) == length


def test_the_queue_gives_gradients_and_stands_still_in_evaluation():
    module = queue_head(queue_length=6)
    proj_s = torch.randn(4, 8, requires_grad=True)
    for _ in range(2):
        module.loss(proj_s, torch.randn(4, 8))['loss_ct'].backward()
    assert proj_s.grad.isfinite().all() and proj_s.grad.abs().sum() > 0
    before = module.queue.clone()
    module.eval().loss(proj_s, torch.randn(4, 8))
    with torch.no_grad():
        module.train().loss(proj_s, torch.randn(4, 8))
    assert torch.equal(module.queue, before)


@pytest.mark.parametrize('kwargs, named', [
    (dict(queue_length=0), 'queue_length must be 1 or more, but got 0'),
    (dict(loss_style='byol'), "'byol' has no negatives")])
def test_bad_queues_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        queue_head(**kwargs)


def step(micro_batch, drop_path=0., norms=True):
    """Losses, gradients and buffers of a step on 6 images."""
    torch.manual_seed(0)
    cfg = model_cfg(**{'target.mask_ratio': 0.})
    cfg.backbone.drop_path_rate = drop_path
    cfg.micro_batch = micro_batch
    model = build(cfg).double()
    model.head.contrastive.float()
    views = torch.randn(2, 6, 3, 32, 32).double()
    torch.manual_seed(1)
    losses = model.loss(list(views))
    model.parse_losses(losses)[0].backward()
    return losses, {n: p.grad for n, p in model.named_parameters()
                    if p.grad is not None}, dict(model.named_buffers())


@pytest.mark.parametrize('micro_batch', [1, 2, 4, 6])
def test_micro_batches_are_the_whole_batch(micro_batch):
    """BatchNorm and its statistics too, since it sees the whole batch."""
    whole, cached = step(None), step(micro_batch)
    for expected, actual in zip(whole, cached):
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                actual[name], value, rtol=1e-5, atol=1e-7)


def test_draws_are_repeated_for_the_backward_pass():
    """With drop path the two forward passes of a micro-batch must agree.

    A finite difference of the loss, drawn alike each time, is the gradient.
    """
    torch.manual_seed(0)
    cfg = model_cfg()
    cfg.backbone.drop_path_rate, cfg.micro_batch = 0.5, 2
    model = build(cfg).double()
    model.head.contrastive = model.head.contrastive.float()
    views = list(torch.randn(2, 6, 3, 32, 32).double())

    def loss_rc():
        torch.manual_seed(1)
        return model.loss(views)['loss_rc']

    weight = model.backbone.layers[1].ffn.layers[1].weight
    direction = torch.randn_like(weight)
    (grad, ) = torch.autograd.grad(loss_rc(), weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * direction
            values.append(loss_rc().item())
            weight -= sign * 1e-5 * direction
    assert (grad * direction).sum().item() == pytest.approx(
        (values[0] - values[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize('overrides, named', [
    (dict(micro_batch=0), '1 image or more, but got 0'),
    (dict(micro_batch=2, contrastive=False), 'accumulative_counts'),
    (dict(micro_batch=2, backbone=True), 'backbone has BatchNorm')])
def test_micro_batches_without_effect_raise(overrides, named):
    cfg = model_cfg(contrastive=overrides.get('contrastive', True))
    cfg.micro_batch = overrides['micro_batch']
    if 'backbone' in overrides:
        cfg.backbone.patch_cfg = dict(norm_cfg=dict(type='BN2d'))
        cfg.backbone.patch_cfg.norm_cfg = dict(type='BN')
    with pytest.raises(ValueError, match=named):
        build(cfg)


@pytest.mark.parametrize('saved, wanted', [(None, 6), (6, None), (6, 9)])
def test_queue_of_another_run_is_dropped_by_load_from(saved, wanted):
    def cmae(length):
        queue = {} if length is None else {
            'head.contrastive.type': 'CMAEQueueHead',
            'head.contrastive.queue_length': length}
        return build(model_cfg(width=16, depth=1, **queue))

    first, second = cmae(saved), cmae(wanted)
    if saved:
        first.head.contrastive.queue.fill_(1)
    for purpose in ('load_from', 'test'):
        state, lines, _ = fit(second, first.state_dict(), purpose)
        second.load_state_dict(state)
        if wanted:
            assert second.head.contrastive.queue.abs().sum() == 0
            assert purpose == 'test' or 'starts empty' in lines[0]
    with pytest.raises(CheckpointError, match='queue of negatives has length'):
        fit(second, first.state_dict(), 'resume')


def test_a_queue_longer_than_the_data_is_refused(image_root, tmp_path):
    runner = ResumableRunner.from_cfg(runner_cfg(
        image_root, tmp_path, **{
            'model.head.contrastive.type': 'CMAEQueueHead',
            'model.head.contrastive.queue_length': 21}))
    with pytest.raises(ValueError, match='21 .* exceed the 24 images'):
        runner.train()
