import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_training import on_ranks

from cmae_mm.models import CMAEContrastiveHead


def head(kind=CMAEContrastiveHead, **kwargs):
    predictor = dict(
        type='NonLinearNeck',
        in_channels=8,
        hid_channels=12,
        out_channels=8,
        with_last_bn=False,
        with_avg_pool=False,
        norm_cfg=dict(type='BN1d'))
    return kind(predictor=predictor, **kwargs)


def double_loop(pred, targets, temperature, first=0):
    """The formula, term by term in Python floats."""

    def cosine(a, b):
        return (sum(x * y for x, y in zip(a, b)) /
                math.sqrt(sum(x * x for x in a)) /
                math.sqrt(sum(y * y for y in b)))

    pred, targets = pred.tolist(), targets.tolist()
    loss = 0.
    for i, p in enumerate(pred):
        terms = [
            math.exp(cosine(p, t) / temperature) for t in targets
        ]
        loss -= math.log(terms[first + i] / sum(terms))
    return loss / len(pred)


@given(
    n=st.integers(2, 7),
    temperature=st.floats(0.05, 1.),
    weight=st.floats(0.1, 2.),
    seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_infonce_is_the_double_loop(n, temperature, weight, seed):
    torch.manual_seed(seed)
    proj_s, proj_t = torch.randn(2, n, 8)
    module = head(
        temperature=temperature, loss_weight=weight,
        scale_by_temperature=False)
    pred = module.predictor([proj_s])[0]
    assume(pred.norm(dim=1).min() > 0)  # the loop divides by it
    expected = weight * double_loop(pred, proj_t, temperature)
    losses = module.loss(proj_s, proj_t)
    assert losses['loss_ct'].item() == pytest.approx(expected, rel=1e-4)
    module.scale_by_temperature = True
    assert module.loss(proj_s, proj_t)['loss_ct'].item() == pytest.approx(
        2 * temperature * expected, rel=1e-4)


def test_byol_only_pulls_positives():
    proj_s, proj_t = torch.randn(2, 5, 8)
    module = head(loss_style='byol', loss_weight=3.)
    pred = module.predictor([proj_s])[0]
    rho = torch.nn.functional.cosine_similarity(pred, proj_t)
    losses = module.loss(proj_s, proj_t)
    torch.testing.assert_close(losses['loss_ct'], 3 * (2 - 2 * rho).mean())
    torch.testing.assert_close(losses['rho_pos'], rho.mean())


def test_watched_calls():
    module = head()
    module.predictor = torch.nn.Identity()
    module.predictor.forward = lambda x: x
    proj = torch.eye(8)[:4]
    losses = module.loss(proj, proj)
    assert losses['rho_pos'] == 1 and losses['rho_neg'] == 0
    assert losses['acc_ct'] == 100
    assert module.loss(proj, proj.roll(1, 0))['acc_ct'] == 0


def test_target_gets_no_gradient():
    proj_s, proj_t = torch.randn(2, 5, 8).requires_grad_()
    proj_t.retain_grad()
    proj_s.retain_grad()
    head().loss(proj_s, proj_t)['loss_ct'].backward()
    assert proj_t.grad is None and proj_s.grad.abs().sum() > 0


@pytest.mark.parametrize('kwargs, named', [
    (dict(loss_style='triplet'), "loss_style .* got 'triplet'"),
    (dict(temperature=0.), 'temperature must be above 0, but got 0.0'),
    (dict(loss_weight=-1.), 'loss_weight .* got -1.0'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        head(**kwargs)


def test_one_image_has_no_negatives():
    module = head().eval()
    with pytest.raises(ValueError, match='InfoNCE needs negatives'):
        module.loss(*torch.randn(2, 1, 8))
    byol = head(loss_style='byol').eval()
    assert byol.loss(*torch.randn(2, 1, 8))['loss_ct'].isfinite()


def test_loss_is_float32_under_autocast():
    module = head().eval()
    proj_s, proj_t = torch.randn(2, 5, 8)
    expected = module.loss(proj_s, proj_t)['loss_ct']
    with torch.autocast('cpu', torch.bfloat16):
        actual = module.loss(proj_s, proj_t)['loss_ct']
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)


def test_negatives_come_from_all_processes(tmp_path):
    proj_s, proj_t = torch.randn(2, 6, 8)

    def rank(number):
        torch.manual_seed(0)
        module = head(scale_by_temperature=False).eval()
        part = slice(3 * number, 3 * number + 3)
        losses = module.loss(proj_s[part], proj_t[part])
        pred = module.predictor([proj_s[part]])[0].detach()
        torch.save((pred, losses['loss_ct'].item()), tmp_path / f'{number}.pt')

    assert on_ranks(rank, tmp_path) == [0, 0]
    for number in range(2):
        pred, loss = torch.load(tmp_path / f'{number}.pt')
        expected = double_loop(pred, proj_t, 0.07, first=3 * number)
        assert loss == pytest.approx(expected, rel=1e-4)
