import math

import pytest
import torch
from helpers import build, model_cfg

from cmae_mm.engine import TargetUpdateHook
from cmae_mm.models import MomentumTarget


def snapshot(module):
    return {k: v.detach().double().clone() for k, v in
            module.named_parameters()}


def perturb(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)


def reference_update(target, online, mu):
    """One EMA step in float64, parameter by parameter."""
    return {k: mu * v + (1 - mu) * online[k] for k, v in target.items()}


@pytest.mark.parametrize('mu', [0.5, 0.996])
def test_ema_against_a_float64_loop(mu):
    model = build(model_cfg(**{'target.momentum': mu}))
    expected = snapshot(model.target.module)
    for _ in range(5):
        perturb(model)
        expected = reference_update(expected, snapshot(model.online), mu)
        model.update_target()
    for name, value in model.target.module.named_parameters():
        torch.testing.assert_close(
            value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert model.target.steps == 5


def test_batch_statistics_stay_the_targets_own():
    model = build(model_cfg())
    model.loss([torch.randn(4, 3, 32, 32), 5 + torch.randn(4, 3, 32, 32)])
    own = model.target.projector.bn0.running_mean.clone()
    model.update_target()
    assert torch.equal(model.target.projector.bn0.running_mean, own)
    assert not torch.allclose(model.neck.projector.bn0.running_mean, own)


def test_the_hook_follows_the_optimizer_and_skipped_steps():
    model = build(model_cfg())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    hook = TargetUpdateHook()
    hook.attach(model, optimizer, num_steps=10)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    for finite in (True, False, True):
        loss = sum(p.sum() for p in parameters)
        scaler.scale(loss).backward()
        if not finite:
            parameters[0].grad[0] = float('inf')
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert model.target.steps == 2
    hook.detach()
    optimizer.step()
    assert model.target.steps == 2


def test_cosine_momentum_ends_at_its_end():
    model = build(model_cfg())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.)
    hook = TargetUpdateHook(momentum=0.9, end_momentum=1.0)
    hook.attach(model, optimizer, num_steps=5)
    seen = []
    for _ in range(5):
        optimizer.step()
        seen.append(1 - model.target.momentum)
    expected = [
        1 - 0.1 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)
    ]
    assert seen == pytest.approx(expected)
    assert seen[0] == pytest.approx(0.9) and seen[-1] == pytest.approx(1.0)


def test_constant_momentum_is_the_models():
    model = build(model_cfg(**{'target.momentum': 0.75}))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.)
    TargetUpdateHook().attach(model, optimizer, num_steps=3)
    optimizer.step()
    assert model.target.momentum == pytest.approx(0.25)


@pytest.mark.parametrize('momentum', [0., 1., -0.1, 2.])
def test_bad_momentum_is_named(momentum):
    with pytest.raises(ValueError, match=f'but got {momentum}'):
        TargetUpdateHook(momentum=momentum)
    vit = build(model_cfg())
    with pytest.raises(ValueError, match=f'but got {momentum}'):
        MomentumTarget(vit.backbone, vit.neck.projector, momentum=momentum)


def test_a_target_that_stands_still_is_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.models.selfsup.cmae.print_log',
                        lambda text, **kwargs: said.append(text))
    model = build(model_cfg())
    batch = [torch.randn(4, 3, 32, 32)] * 2
    model.loss(batch)
    model.loss(batch)
    assert len(said) == 1 and 'TargetUpdateHook' in said[0]
