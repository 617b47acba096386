"""Fused optimizers: the same numbers and checkpoints."""
import copy

import pytest
import torch
from helpers import needs_torch
from torch.optim import SGD, Adam, AdamW

from cmae_mm.engine import AutoAmpOptimWrapper
from cmae_mm.engine.optim_wrapper import enable_fused

pytestmark = needs_torch(2, 4, 'a fused kernel on a CPU')


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, 7)) for n in (3, 1, 20)]


def train(optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group['params']:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for g in optimizer.param_groups
            for p in g['params']]


def wrapper(kind=AdamW, **settings):
    return AutoAmpOptimWrapper(
        dtype='float32', optimizer=kind(parameters(), lr=0.05, **settings))


@pytest.mark.parametrize('kind', [Adam, AdamW])
def test_it_steps_as_torch_does(kind):
    settings = dict(betas=(0.9, 0.95), weight_decay=0.05)
    ours = wrapper(kind, **settings)
    assert ours.optimizer.param_groups[0]['fused']
    plain = kind(parameters(), lr=0.05, **settings)
    for mine, theirs in zip(train(ours.optimizer, 20), train(plain, 20)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('saved, loaded', [(False, True), (True, False)])
def test_optimizer_state_loads_with_other_kernels(saved, loaded):
    def build(fused):
        made = wrapper(**({} if fused else dict(foreach=True)))
        assert bool(made.optimizer.param_groups[0].get('fused')) == fused
        return made

    source, other = build(saved), build(loaded)
    train(source.optimizer, 5)
    state = copy.deepcopy(source.state_dict())
    with torch.no_grad():
        for p, q in zip(other.optimizer.param_groups[0]['params'],
                        source.optimizer.param_groups[0]['params']):
            p.copy_(q)
    other.load_state_dict(state)
    group = other.optimizer.param_groups[0]
    assert bool(group['fused']) == loaded
    assert bool(group['foreach']) == (not loaded)
    for mine, theirs in zip(train(other.optimizer, 5, seed=1),
                            train(source.optimizer, 5, seed=1)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_given_settings_are_kept():
    for optimizer in (AdamW(parameters(), foreach=True),
                      AdamW(parameters(), fused=True),
                      SGD(parameters(), lr=0.1)):
        before = copy.deepcopy(optimizer.defaults)
        assert not enable_fused(optimizer)
        assert optimizer.defaults == before
    # nor is one changed that has begun
    begun = AdamW(parameters())
    train(begun, 1)
    assert not enable_fused(begun)
