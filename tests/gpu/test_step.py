"""What a training step does on a CUDA device; started by tools/check_gpu.sh.

What of it a CPU can show is in tests/engine/test_compilation.py.
"""
import re

import pytest
import torch
from shrunken import shrunken
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from cmae_mm.engine.model_options import _PARTS, compile_parts
from cmae_mm.engine.training_step import (BatchTrial, build_training_step,
                                          fake_batch, largest_batch)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason='there is no CUDA device; run tools/check_gpu.sh where there is')
NAMES = ['cmae_vit-b_300e', 'cmae_convvit-b_300e']
# Names of the kernels of attention that hold no matrix of all pairs.
FUSED = ('flash', 'fmha', 'efficient_attention', 'cudnn_generated')
# Kernels of small rows have one name for both, and a flag for the logarithm.
LOG_SOFTMAX = re.compile(
    r'log_?softmax|softmax_warp_\w+<\w+, \w+, \w+, \d+, true', re.IGNORECASE)


def config(name, tmp_path):
    cfg = shrunken(name, tmp_path / 'data', tmp_path / 'work')
    cfg.optim_wrapper.update(
        type='mmpretrain.AutoAmpOptimWrapper', dtype='bfloat16')
    return cfg


def step_of(cfg, batch_size=8):
    device = torch.device('cuda')
    step = build_training_step(cfg, device)
    step.batch = fake_batch(cfg, batch_size, device)
    return step


@pytest.mark.parametrize('name', NAMES)
def test_host_synchronises_once_per_step(name, tmp_path, monkeypatch):
    """For the decision whether the step is finite, and for nothing else.

    Everywhere else waiting is an error, which names the line.
    """
    step = step_of(config(name, tmp_path))
    step()
    torch.cuda.synchronize()
    look, waits = step.wrapper._check_finite, []

    def look_and_wait(grads):
        waits.append('_check_finite')
        torch.cuda.set_sync_debug_mode('default')
        try:
            return look(grads)
        finally:
            torch.cuda.set_sync_debug_mode('error')

    monkeypatch.setattr(step.wrapper, '_check_finite', look_and_wait)
    # The figures that mmengine hands on to logs stay on the device.
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert waits == ['_check_finite']


@pytest.mark.parametrize('name', NAMES)
def test_attention_runs_fused_kernels(name, tmp_path, record_property):
    step = step_of(config(name, tmp_path))
    step()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels = {event.key for event in profiler.key_averages()}
    fused = sorted(k for k in kernels if any(f in k.lower() for f in FUSED))
    record_property('kernels', fused[0][:60] if fused else 'none')
    assert fused
    # The composed way has a softmax of its own; L_c's is a log-softmax.
    assert not [k for k in kernels if 'softmax' in k.lower()
                and k not in fused and not LOG_SOFTMAX.search(k)]


@pytest.mark.parametrize('options', [{}, dict(mode='reduce-overhead')])
@pytest.mark.parametrize('name', NAMES)
def test_a_compiled_step_has_its_graphs_and_no_more(name, options, tmp_path):
    torch._dynamo.reset()
    counters.clear()
    step = step_of(config(name, tmp_path))
    compile_parts(step.model, **options)
    for _ in range(3 if options else 2):
        step()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            losses = step()
    assert counters['stats']['unique_graphs'] == len(_PARTS)
    assert not counters['graph_break']
    assert all(v.isfinite().all() for v in losses.values())
    assert not [k for k in step.model.state_dict() if '_orig_mod' in k]


def test_views_are_the_cpus(tmp_path):
    """At once on the device, one by one on the CPU."""
    step = step_of(config(NAMES[0], tmp_path))
    made = step.model.data_preprocessor
    canvas = step.batch['inputs']
    torch.manual_seed(1)
    params = made.draw_params(len(canvas))
    there = made.make_views(canvas, params)
    here = made.cpu().make_views(canvas.cpu(), params)
    for a, b in zip(there, here):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-4)


def test_the_largest_batch_is_found(tmp_path, record_property):
    """In a budget of 1 GiB, which activation checkpointing makes larger."""
    cfg = config(NAMES[0], tmp_path)
    found = []
    for checkpointing in (None, True):
        cfg.activation_checkpointing = checkpointing
        trial = BatchTrial(cfg, 1.)
        found.append(largest_batch(trial.fits, 2))
        assert trial.peak <= 1 and trial.rate > 0
    torch.cuda.set_per_process_memory_fraction(1.)
    record_property('largest', str(found))
    assert 2 <= found[0] <= found[1]
