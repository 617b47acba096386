"""The hybrid encoder's pyramid, for detection and segmentation."""
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import SHARED, build, model_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import nn

from cmae_mm.checkpoints import CheckpointError
from cmae_mm.models import TransferConvViT, TransferConvViTDet

TRACE = SHARED / 'reference/convvit_reference.safetensors'
ARCH = dict(
    embed_dims=[8, 12, 16], depths=[1, 1, 3], num_heads=2,
    global_attn_indexes=[0, 2])


def encoder(**kwargs) -> TransferConvViTDet:
    cfg = dict(arch=ARCH, img_size=32, patch_sizes=(2, 2, 2), window_size=2)
    return TransferConvViTDet(**{**cfg, **kwargs}).double()


def randomised(**kwargs) -> TransferConvViTDet:
    """All parameters, relative positions too, are random."""
    model = encoder(**kwargs)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.skipif(not TRACE.is_file(), reason='the trace is not here')
def test_maps_are_the_recorded_stages(tmp_path):
    """Of the published encoder, on whole images, with global attention."""
    from safetensors import safe_open
    from safetensors.torch import load_file
    with safe_open(TRACE, 'pt') as file:
        meta = json.loads(file.metadata()['meta'])
    trace = load_file(TRACE)
    state = {k.removeprefix('state_dict.'): v for k, v in trace.items()
             if k.startswith('state_dict.')}
    torch.save(dict(model=state), tmp_path / 'convmae.pth')
    arch = {k: meta[k] for k in ('embed_dims', 'depths', 'num_heads')}

    def started(**kwargs):
        model = TransferConvViTDet(
            dict(arch, global_attn_indexes=[1]), img_size=meta['img_size'],
            init_cfg=dict(
                type='Pretrained', checkpoint=str(tmp_path / 'convmae.pth')),
            **kwargs)
        model.init_weights()
        return model

    with torch.no_grad():
        maps = started(window_size=0)(trace['img'])
        small = started(window_size=2)(trace['img'])
    for i in (1, 2):
        torch.testing.assert_close(
            maps[i - 1], trace[f'whole.stage{i}'], atol=1e-5, rtol=1e-4)
    stage3 = trace['whole.stage3'].transpose(1, 2).view_as(maps[2])
    torch.testing.assert_close(maps[2], stage3, atol=1e-5, rtol=1e-4)
    pooled = torch.stack([stage3[..., i::2, j::2] for i in (0, 1)
                          for j in (0, 1)]).amax(0)
    torch.testing.assert_close(maps[3], pooled, atol=1e-5, rtol=1e-4)
    # windows change it
    assert not torch.allclose(small[2], maps[2], atol=1e-3)


def plain_block(block, x, side):
    """A block on one image by its formula: in windows, position by position.

    logit(q, k) = q.k / sqrt(d) + q.rel_h[row distance] + q.rel_w[column's].
    """
    heads, width = block.attn.num_heads, x.shape[-1]
    dim = width // heads
    out = torch.zeros_like(x)
    y = block.ln1(x)
    for top in range(0, len(x), side):
        for left in range(0, x.shape[1], side):
            window = y[top:top + side, left:left + side]
            shape = window.shape[:2]
            # windows at the edge are filled up with zeros
            window = F.pad(window, (0, 0, 0, side - shape[1], 0,
                                    side - shape[0]))
            places = [(i, j) for i in range(side) for j in range(side)]
            q, k, v = F.linear(
                window.reshape(-1, width), block.attn.qkv.weight,
                block.attn.qkv.bias).view(-1, 3, heads, dim).unbind(1)
            for a, (i, j) in enumerate(places):
                if i >= shape[0] or j >= shape[1]:
                    continue
                found = []
                for h in range(heads):
                    logits = torch.stack([
                        q[a, h] @ k[b, h] / dim**0.5
                        + q[a, h] @ block.attn.rel_pos_h[i - m + side - 1]
                        + q[a, h] @ block.attn.rel_pos_w[j - n + side - 1]
                        for b, (m, n) in enumerate(places)])
                    found.append(logits.softmax(0) @ v[:, h])
                out[top + i, left + j] = block.attn.proj(torch.cat(found))
    x = x + out
    first, last = block.ffn.layers[0][0], block.ffn.layers[1]
    return x + last(F.gelu(first(block.ln2(x))))


def test_blocks_by_their_formula():
    """Windows at the edge included; global ones are one window."""
    model = randomised(window_size=3)
    assert [b.window_size for b in model.layers] == [0, 3, 0]
    x = torch.randn(1, 4, 4, 16).double()
    for block, side in zip(model.layers, (4, 3, 4)):
        torch.testing.assert_close(block(x)[0], plain_block(block, x[0], side))


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_images_of_any_size(height, width):
    """They are padded, and of the maps is given what covers the image."""
    torch.manual_seed(0)
    model = randomised()
    image = torch.randn(1, 3, height, width).double()
    maps = model(image)
    sides = [(-(-height // s), -(-width // s)) for s in (2, 4, 8, 16)]
    assert [m.shape[2:] for m in maps] == sides
    assert [m.shape[1] for m in maps] == list(model.map_dims)
    padded = F.pad(image, (0, -width % 16, 0, -height % 16))[
        ..., :-(-height // 8) * 8, :-(-width // 8) * 8]
    for one, other in zip(maps, model(padded)):
        assert torch.equal(one, other[..., :one.shape[2], :one.shape[3]])


def test_paths_are_dropped_whole():
    """An image's attention is left out or, in the others, made up for it."""
    model = randomised(drop_path_rate=0.4)
    rates = [b.drop_path.drop_prob for s in model.conv_stages
             for b in s.blocks]
    rates += [b.ffn.dropout_layer.drop_prob for b in model.layers]
    assert rates == pytest.approx([0., 0.1, 0.2, 0.3, 0.4])
    block = model.layers[1]  # with windows
    for p in block.ffn.layers[1].parameters():
        nn.init.zeros_(p)
    x = torch.randn(16, 4, 4, 16).double()
    kept = (block.eval()(x) - x) / (1 - 0.3)
    change = block.train()(x) - x
    dropped = change.abs().amax(dim=(1, 2, 3)) == 0
    assert 0 < dropped.sum() < 16
    torch.testing.assert_close(change[~dropped], kept[~dropped])


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """Checkpoints of a hybrid and of a plain encoder's pre-training."""
    folder = tmp_path_factory.mktemp('pretrained')
    torch.manual_seed(1)
    cfg = model_cfg()
    arch = {k: v for k, v in ARCH.items() if k != 'global_attn_indexes'}
    torch.save(dict(state_dict=build(cfg).state_dict()), folder / 'plain.pth')
    cfg.backbone = dict(
        type='CMAEConvViT', arch=arch, img_size=32, patch_sizes=(2, 2, 2),
        mask_ratio=0.5)
    model = build(cfg)
    torch.save(dict(state_dict=model.state_dict()), folder / 'hybrid.pth')
    return folder


def start(folder, name, **kwargs):
    model = encoder(init_cfg=dict(
        type='Pretrained', checkpoint=str(folder / f'{name}.pth')), **kwargs)
    model.init_weights()
    return model


def test_starts_from_pre_training(pretrained, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.load.print_log',
                        lambda text, **kwargs: said.append(text))
    model = start(pretrained, 'hybrid', img_size=64)
    assert 'keys matched' in said[0]
    assert 'not loaded: its final norm, fusion layers, ' in said[0]
    assert 'pos_embed: 4x4 to 8x8' in said[0]
    assert 'layers.0.attn.rel_pos_h' in said[0]
    assert not any(p.any() for n, p in model.named_parameters()
                   if 'rel_pos' in n)
    # the same tokens as a classifier's, where attention is global
    start_cfg = dict(
        type='Pretrained', checkpoint=str(pretrained / 'hybrid.pth'))
    arch = {k: v for k, v in ARCH.items() if k != 'global_attn_indexes'}
    classifier = TransferConvViT(
        arch, img_size=32, patch_sizes=(2, 2, 2), out_type='featmap',
        init_cfg=start_cfg).double()
    classifier.init_weights()
    images = torch.randn(2, 3, 32, 32).double()
    torch.testing.assert_close(
        start(pretrained, 'hybrid', window_size=0)(images)[2],
        classifier(images)[0])
    with pytest.raises(CheckpointError, match='plain .* hybrid'):
        start(pretrained, 'plain')
    with pytest.raises(CheckpointError, match="width, depth and patch size"):
        start(pretrained, 'hybrid', arch=dict(ARCH, embed_dims=[8, 12, 20]))


class Detector(nn.Module):

    def __init__(self):
        super().__init__()
        self.backbone = encoder()
        self.neck = nn.Linear(16, 2)


def test_layer_decay_over_the_stages():
    """Convolution stages are the stem, blocks their own, all else the top."""
    model = Detector()
    wrapper = build_optim_wrapper(model, ConfigDict(
        type='OptimWrapper',
        constructor='BackboneLayerDecayConstructor',
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.7)))
    groups = {g['param_name']: g['lr'] for g in wrapper.optimizer.param_groups}
    assert groups.keys() == {n for n, _ in model.named_parameters()}
    for name, rate in groups.items():
        above = 4  # three blocks and the neck
        if name.startswith('backbone.layers.'):
            above = 3 - int(name.split('.')[2])
        elif name.startswith('neck.'):
            above = 0
        assert rate == pytest.approx(1e-4 * 0.7**above), name


def test_frozen_stages():
    for stages, names in ((1, ['conv_stages.0.']), (2, ['conv_stages.']),
                          (3, [''])):
        model = encoder(frozen_stages=stages, drop_path_rate=0.5).train()
        for name, p in model.named_parameters():
            frozen = name.startswith(tuple(names))
            assert p.requires_grad != frozen, (stages, name)
        assert model.layers[2].training == (stages < 3)


@pytest.mark.parametrize('kwargs, named', [
    (dict(arch='large'), "one of b, base, mini, s, small, .* got 'large'"),
    (dict(arch=dict(ARCH, global_attn_indexes=[1, 3])),
     r"global_attn_indexes has \[3\].* stage's 3 blocks are 0 to 2"),
    (dict(arch={k: v for k, v in ARCH.items() if 'global' not in k}),
     'lacks global_attn_indexes'),
    (dict(out_indices=[1, 4]), r'out_indices must be from 0 .* got \[1, 4\]'),
    (dict(window_size=-1), 'window_size must be the side .* got -1'),
    (dict(img_size=36), 'product of patch_sizes=8 does not divide .*=36'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        encoder(**kwargs)


def test_named_sizes():
    with torch.device('meta'):
        for arch, dims, blocks in (('base', (256, 384, 768, 768), 11),
                                   ('small', (128, 256, 384, 384), 11),
                                   ('mini', (32, 64, 128, 128), 3)):
            model = TransferConvViTDet(arch, img_size=512)
            assert model.map_dims == dims
            some = TransferConvViTDet(arch, img_size=64, out_indices=[3, 1])
            outs = some(torch.zeros(1, 3, 64, 64))
            assert [o.shape[1:] for o in outs] == [(dims[3], 2, 2),
                                                   (dims[1], 8, 8)]
            sizes = [b.window_size for b in model.layers]
            assert len(sizes) == blocks and sizes[-1] == 0
            assert sizes.count(0) == (4 if blocks == 11 else 2)
