"""Workarounds for bugs of old versions of torch."""
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TORCH, build, model_cfg

from cmae_mm.models.utils import gelu

HYBRID = dict(
    type='CMAEConvViT', img_size=32, patch_sizes=(2, 2, 2),
    arch=dict(embed_dims=[8, 12, 16], depths=[1, 1, 1], num_heads=2))


def test_gradients_of_gelu_are_right_in_any_layout():
    """Of transposed gradients torch 2.1 reads memory that is not theirs."""
    x, upstream = torch.randn(3, 7, 16), torch.randn(3, 16, 7).transpose(1, 2)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).clone().requires_grad_()
        gelu(leaf).backward(upstream.to(dtype))
        found.append(leaf.grad.double())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('backbone', [None, HYBRID], ids=['vit', 'convvit'])
def test_gradients_are_those_without_onednn(backbone):
    """Of the whole training loss, which uses every operation's gradient."""
    cfg = model_cfg()
    cfg.backbone = backbone or cfg.backbone
    model = build(cfg)
    images = torch.randn(2, 4, 3, 32, 32)
    found = []
    for enabled in (True, False):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.backends.mkldnn.flags(enabled=enabled):
            sum(model.loss(list(images)).values()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()
                      if p.grad is not None})
    assert len(found[0]) > 50
    for name, value in found[1].items():
        error = (found[0][name] - value).abs().max()
        assert error < 1e-3 * max(value.abs().max(), 0.1), name


def test_the_target_follows_where_something_is_compiled():
    """Before and after it begins to follow, in a process of its own."""
    code = """
import torch
import cmae_mm
from helpers import build, model_cfg
from mmengine.registry import init_default_scope
init_default_scope('mmpretrain')
def compile_something():
    torch.compile(torch.nn.Linear(2, 2), backend='eager')(torch.ones(1, 2))
if {before}:
    compile_something()
model = build(model_cfg())
for kind in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = kind(model.parameters(), lr=0.)
    handle = model.target.follow(
        optimizer, model.backbone, model.neck.projector)
    optimizer.step()
compile_something()
optimizer.step()
handle.remove()
optimizer.step()
assert model.target.steps == 3, model.target.steps
"""
    # Only the old ones differ, and a process compiles first once.
    for before in (True, False) if TORCH < (2, 3) else (True, ):
        done = subprocess.run(
            [sys.executable, '-c', 'import sys\nsys.path[:0] = ["tests"]\n'
             + code.format(before=before)],
            cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
