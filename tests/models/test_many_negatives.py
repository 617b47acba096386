"""A small batch with a large one's negatives: cached gradients."""
import pytest
import torch
from helpers import build, model_cfg


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
