"""The target: a moving average that follows an optimizer."""
import copy
import math
import pickle

import pytest
import torch
from helpers import build, model_cfg, needs_torch

from cmae_mm.engine import TargetUpdateHook
from cmae_mm.models import MomentumTarget


def parts(model):
    """The online parts that the target averages."""
    return model.backbone, model.neck.projector


def snapshot(encoder, projector):
    return {
        f'{part}.{name}': p.detach().double().clone()
        for part, module in (('encoder', encoder), ('projector', projector))
        for name, p in module.named_parameters()
    }


def perturb(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)


def sgd(model, lr=0.):
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=lr)


def reference_update(target, online, mu):
    """One EMA step in float64, parameter by parameter."""
    return {k: mu * v + (1 - mu) * online[k] for k, v in target.items()}


@pytest.mark.parametrize('mu', [0.5, 0.996])
def test_ema_against_a_float64_loop(mu):
    model = build(model_cfg(**{'target.momentum': mu}))
    target = model.target
    assert target.momentum == mu
    expected = snapshot(target.encoder, target.projector)
    for _ in range(5):
        perturb(model)
        expected = reference_update(expected, snapshot(*parts(model)), mu)
        target.update(*parts(model))
    made = snapshot(target.encoder, target.projector)
    assert made.keys() == expected.keys()
    for name, value in made.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-5, atol=1e-6)
    assert target.steps == 5


def test_ema_follows_replaced_parameters_and_frozen_ones():
    """Updates keep no parameters, which may be replaced between them."""
    model = build(model_cfg(**{'target.momentum': 0.5}))
    target, others = model.target, parts(build(model_cfg()))
    target.update(*parts(model))
    perturb(model)
    state = {k: v + 1 for k, v in model.backbone.state_dict().items()}
    model.backbone.load_state_dict(state, assign=True)
    model.backbone.pos_embed.requires_grad_(False)  # torch 2.1 sets it
    target.encoder.load_state_dict(
        {k: v.clone() for k, v in target.encoder.state_dict().items()},
        assign=True)
    model.backbone.layers[0].ln1.requires_grad_(False)
    for online in (parts(model), others):
        before = snapshot(target.encoder, target.projector)
        expected = reference_update(before, snapshot(*online), 0.5)
        target.update(*online)
        made = snapshot(target.encoder, target.projector)
        for name, value in made.items():
            fixed = name == 'encoder.pos_embed' or (
                online is not others and name.startswith(
                    'encoder.layers.0.ln1'))
            torch.testing.assert_close(
                value, (before if fixed else expected)[name], msg=name)
    assert copy.deepcopy(target)._owned == []


def test_batch_statistics_stay_the_targets_own():
    model = build(model_cfg())
    model.loss([torch.randn(4, 3, 32, 32), 5 + torch.randn(4, 3, 32, 32)])
    own = model.target.projector.bn0.running_mean.clone()
    model.target.update(*parts(model))
    assert torch.equal(model.target.projector.bn0.running_mean, own)
    assert not torch.allclose(model.neck.projector.bn0.running_mean, own)


@needs_torch(2, 3, 'a loss scaler on a CPU')
def test_the_target_follows_the_optimizer_but_for_skipped_steps():
    model = build(model_cfg())
    optimizer = sgd(model, lr=0.1)
    parameters = optimizer.param_groups[0]['params']
    handle = model.target.follow(optimizer, *parts(model))
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
    handle.remove()
    optimizer.step()
    assert model.target.steps == 2


def test_is_following():
    model = build(model_cfg())
    target, first, second = model.target, sgd(model), sgd(model)
    assert not target.is_following
    handle = target.follow(first, *parts(model))
    assert target.is_following
    # copies and pickles have an optimizer of their own to follow, or none
    assert not copy.deepcopy(target).is_following
    assert not pickle.loads(pickle.dumps(target)).is_following
    # the latest optimizer is followed, and no other
    target.follow(second, *parts(model))
    first.step()
    assert target.steps == 0
    handle.remove()
    assert target.is_following
    second.step()
    assert target.steps == 1
    del second
    assert not target.is_following
    hook = TargetUpdateHook()
    hook.attach(model, first, num_steps=3)
    assert target.is_following
    hook.detach()
    assert not target.is_following


def test_cosine_momentum_ends_at_its_end():
    model = build(model_cfg())
    optimizer = sgd(model)
    hook = TargetUpdateHook(momentum=0.9, end_momentum=1.0)
    hook.attach(model, optimizer, num_steps=5)
    seen = []
    for _ in range(5):
        optimizer.step()
        seen.append(model.target.momentum)
    expected = [
        1 - 0.1 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)
    ]
    assert seen == pytest.approx(expected)
    assert seen[0] == pytest.approx(0.9) and seen[-1] == pytest.approx(1.0)


def test_constant_momentum_is_the_models():
    model = build(model_cfg(**{'target.momentum': 0.75}))
    optimizer = sgd(model)
    TargetUpdateHook().attach(model, optimizer, num_steps=3)
    optimizer.step()
    assert model.target.momentum == 0.75 and model.target.steps == 1


@pytest.mark.parametrize('momentum', [0., 1., -0.1, 2.])
def test_bad_momentum_is_named(momentum):
    with pytest.raises(ValueError, match=f'but got {momentum}'):
        TargetUpdateHook(momentum=momentum)
    with pytest.raises(ValueError, match=f'but got {momentum}'):
        MomentumTarget(*parts(build(model_cfg())), momentum=momentum)


def test_target_without_updates_raises(monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.models.cmae.print_log',
                        lambda text, **kwargs: said.append(text))
    batch = [torch.randn(4, 3, 32, 32)] * 2
    still, fixed, by_hand, followed, evaluated = (
        build(model_cfg(**{'target.fixed': i == 1})) for i in range(5))
    optimizer = sgd(followed)
    followed.target.follow(optimizer, *parts(followed))
    for _ in range(4):
        fixed.loss(batch)
        followed.loss(batch)
        by_hand.loss(batch)
        by_hand.target.update(*parts(by_hand))
        with torch.no_grad():
            evaluated.loss(batch)
    assert said == []
    for _ in range(4):
        still.loss(batch)
    assert len(said) == 1
    assert 'TargetUpdateHook' in said[0] and 'target.follow(' in said[0]


@needs_torch(2, 3, 'compiling without graph breaks')
def test_is_following_does_not_break_a_compiled_graph():
    model = build(model_cfg())
    optimizer = sgd(model)
    model.target.follow(optimizer, *parts(model))
    images = torch.randn(4, 3, 32, 32)
    explained = torch._dynamo.explain(model.target)(images)
    torch._dynamo.reset()
    assert explained.graph_break_count == 0, explained.break_reasons
