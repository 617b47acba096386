"""The same numbers as the recorded trace, and as a plain implementation."""
import json
import subprocess
import sys

import payloads
import plain_convvit
import pytest
import torch
import verify_reference
from helpers import ROOT, SHARED
from plain_reference import make_trace, sincos
from safetensors.torch import load_file, save_file

TRACE = SHARED / 'reference/cmae_reference.safetensors'
HYBRID = SHARED / 'reference/convvit_reference.safetensors'


@pytest.fixture
def verify(capsys):
    """Run tools/verify_reference.py; give its status and its lines."""
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            verify_reference.main([str(word) for word in arguments])
        captured = capsys.readouterr()
        return end.value.code, (captured.out + captured.err).splitlines()

    return run


def max_error(path):
    rows = verify_reference.verify_trace(str(path))
    return max(row.error for row in rows), rows


@pytest.mark.skipif(not TRACE.exists(), reason=f'{TRACE} is not here')
def test_the_recorded_trace(verify):
    status, lines = verify(TRACE)
    assert status == 0
    # float32 does not reach this tolerance
    exceeded, answer = verify(TRACE, '--tolerance', '1e-9', '--json')
    assert exceeded == 1 and json.loads(answer[-1])['tolerance'] == 1e-9
    assert json.loads(answer[-1])['max_rel_err'] > 1e-9
    name, value = lines[-1].split('=')
    assert name == 'max_rel_err' and float(value) < 1e-4
    table = {line.split()[0] for line in lines[:-1] if line.strip()}
    recorded = [k for k in load_file(TRACE)
                if k.startswith('final.') or '.grad.' in k
                or k.split('.')[-1] in ('latent_s', 'latent_t', 'pred_pixel',
                                        'pred_feature', 'proj_s', 'proj_t',
                                        'pred_s')]
    assert set(recorded) <= table
    assert {f'step{n}.loss_{x}' for n in range(5) for x in ('ct', 'rc')
            } <= table


@pytest.mark.skipif(not HYBRID.exists(), reason=f'{HYBRID} is not here')
def test_the_recorded_trace_of_the_hybrid_encoder(verify):
    """Its trace is recognised, and everything in it is compared."""
    status, lines = verify(HYBRID)
    assert status == 0 and float(lines[-1].split('=')[1]) < 1e-4
    table = {line.split()[0] for line in lines[:-1] if line.strip()}
    recorded = {k for k in load_file(HYBRID)
                if k not in ('img', 'mask') and 'state_dict' not in k}
    assert len(recorded) > 100 and recorded <= table


HYBRIDS = {
    'as recorded': dict(depths=(1, 2, 2)),
    'other strides': dict(patch_sizes=(2, 1, 3), img_size=30, keep=9),
    'odd grid': dict(img_size=48, keep=1),
    'depths': dict(depths=(2, 1, 3), decoder=dict(depth=2)),
    'no decoder layers': dict(decoder=dict(depth=0)),
    'widths and heads': dict(
        dims=(6, 10, 24), heads=3, ratio=2,
        decoder=dict(dim=8, heads=2, ratio=3)),
    'kernel': dict(kernel=7),
}


@pytest.mark.parametrize('name', HYBRIDS)
def test_traces_of_a_plain_hybrid_encoder(name, tmp_path):
    path = tmp_path / 'trace.safetensors'
    plain_convvit.make_trace(path, **HYBRIDS[name])
    worst, rows = max_error(path)
    assert worst < 1e-4, [r for r in rows if r.error >= 1e-4]
    assert len(rows) > 70


@pytest.mark.parametrize('key', [
    'patch_embed1', 'stage1', 'stage2', 'stage3', 'latent', 'pred_pixel',
    'loss', 'whole.stage1', 'whole.stage2', 'whole.stage3', 'whole.fused',
    'grad.blocks1.0.attn.weight', 'grad.stage2_output_decode.bias',
    'grad.mask_token'
])
def test_any_difference_of_a_hybrid_is_found(key, tmp_path):

    def change(tensors):
        value = tensors[key].flatten().clone()
        value[0] += 0.01 * value.abs().max()
        tensors[key] = value.view_as(tensors[key])

    path = tmp_path / 'trace.safetensors'
    plain_convvit.make_trace(path, change=change)
    worst, rows = max_error(path)
    wrong = {r.name.split()[0] for r in rows if r.error > 1e-4}
    assert worst > 5e-3 and wrong == {key}


ARCH = dict(embed_dims=192, num_layers=1, num_heads=6,
            feedforward_channels=100)
VARIANTS = {
    'as recorded': {},
    'patch 8': dict(img_size=32, patch_size=8, arch=ARCH),
    'single patches': dict(block=1, mask_ratio=0.75),
    'target without class token': dict(target_cls=False),
    'temperature and weight': dict(temperature=0.3, ct_weight=0.4),
    'momentum': dict(momentum=0.5),
    'depths': dict(
        decoder=dict(
            dim=16, pixel_depth=3, feature_depth=2, heads=2, mlp_ratio=4.)),
    'odd grid': dict(img_size=20, block=1, steps=1),
}


@pytest.mark.parametrize('name', VARIANTS)
def test_traces_of_a_plain_implementation(name, tmp_path):
    path = tmp_path / 'trace.safetensors'
    make_trace(str(path), **VARIANTS[name])
    worst, rows = max_error(path)
    assert worst < 1e-4, [r for r in rows if r.error >= 1e-4]
    assert len(rows) > 50


def test_target_without_any_slot_of_a_class_token(tmp_path):
    path = tmp_path / 'trace.safetensors'
    meta, tensors = make_trace(str(path), target_cls=False)
    for prefix in ('state_dict', 'final'):
        del tensors[f'{prefix}.target_backbone.cls_token']
        key = f'{prefix}.target_backbone.pos_embed'
        tensors[key] = tensors[key][:, 1:].contiguous()
    save_file(tensors, path, dict(meta=json.dumps(meta)))
    assert max_error(path)[0] < 1e-4


@pytest.mark.parametrize('key', [
    'step0.latent_s', 'step0.latent_t', 'step0.pred_feature', 'step0.proj_t',
    'step0.grad.backbone.cls_token', 'final.target_projector.fc0.weight',
    'final.head.predictor.bn0.running_var', 'step1.loss_ct'
])
def test_any_difference_is_found(key, tmp_path):
    path = tmp_path / 'trace.safetensors'
    meta, tensors = make_trace(str(path))
    if 'loss' in key:
        meta['loss'][1]['loss_ct'] *= 1.01
    else:
        value = tensors[key].flatten().clone()
        value[0] += 0.01 * value.abs().max()
        tensors[key] = value.view_as(tensors[key])
    save_file(tensors, path, dict(meta=json.dumps(meta)))
    worst, rows = max_error(path)
    assert worst > 5e-3
    assert max(rows, key=lambda r: r.error).name == key


def test_unreadable_files(verify, tmp_path):
    text = tmp_path / 'text.safetensors'
    text.write_text('no trace')
    bare = tmp_path / 'bare.safetensors'
    save_file(dict(a=torch.zeros(1)), bare)
    hybrid = tmp_path / 'hybrid.safetensors'
    save_file(dict(img=torch.zeros(1)), hybrid,
              dict(meta='{"patch_sizes": [4, 2, 2]}'))
    short = tmp_path / 'short.safetensors'
    save_file(dict(a=torch.zeros(1)), short, dict(meta='{"steps": 1}'))
    reasons = {
        text: 'is a text file',
        bare: "metadata key 'meta'",
        hybrid: 'lacks mask, state_dict.pos_embed',
        short: 'lacks img_size',
    }
    for path, reason in reasons.items():
        status, lines = verify(path)
        assert status == 2 and reason in lines[-1], lines
    evil = tmp_path / 'evil.pth'
    payloads.write_zip(
        evil, payloads.body(payloads.system(tmp_path / 'marker')))
    status, lines = verify(evil)
    assert status == 2 and 'evil.pth' in lines[-1], lines
    assert not (tmp_path / 'marker').exists()
    done = subprocess.run(
        [sys.executable, 'tools/verify_reference.py', str(tmp_path / 'none')],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'there is no trace' in done.stderr


def test_positions_of_the_plain_implementation_are_mmpretrains():
    from mmpretrain.models.utils import build_2d_sincos_position_embedding
    torch.testing.assert_close(
        sincos(3, 16),
        build_2d_sincos_position_embedding(3, 16, cls_token=True))
