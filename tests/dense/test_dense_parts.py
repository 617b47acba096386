"""Shared parts of detection and segmentation, without their libraries."""
import pytest
import torch
from helpers import build, model_cfg
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import nn

from cmae_mm.checkpoints import CheckpointError, export_encoder
from cmae_mm.models import SimpleFPN, TransferViTDet


def vit_det(**kwargs) -> TransferViTDet:
    cfg = dict(
        type='TransferViTDet',
        arch=dict(
            embed_dims=48,
            num_layers=2,
            num_heads=4,
            feedforward_channels=96,
            global_attn_indexes=[1]),
        img_size=32,
        patch_size=4,
        window_size=4)
    return MODELS.build({**cfg, **kwargs})


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    torch.manual_seed(1)
    model = build(model_cfg())
    folder = tmp_path_factory.mktemp('pretrained')
    torch.save(dict(state_dict=model.state_dict()), folder / 'full.pth')
    for to in ('mmdet', 'mmpretrain'):
        export_encoder(model, str(folder / f'{to}.pth'), to=to)
    return model, folder


@pytest.mark.parametrize('name', ['full', 'mmdet', 'mmpretrain'])
@pytest.mark.parametrize('windows', [dict(window_size=8), dict(window_size=0)])
def test_whole_windows_give_the_encoders_tokens(pretrained, name, windows):
    """But for the class token and the final norm, which ViTDet has not."""
    model, folder = pretrained
    vit = vit_det(
        init_cfg=dict(
            type='Pretrained', checkpoint=str(folder / f'{name}.pth')),
        **windows)
    vit.init_weights()
    images = torch.randn(2, 3, 32, 32)
    tokens = model.backbone.embed(images)[:, 1:]
    for layer in model.backbone.layers:
        tokens = layer(tokens)
    torch.testing.assert_close(vit(images)[0].flatten(2).transpose(1, 2),
                               tokens)
    # the windows and relative positions that detection uses change it
    small = vit_det(window_size=4)
    small.load_state_dict(vit.state_dict(), strict=False)
    assert not torch.allclose(small(images)[0], vit(images)[0])


def test_positions_for_another_size(pretrained, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.load.print_log',
                        lambda text, **kwargs: said.append(text))
    init_cfg = dict(
        type='Pretrained', checkpoint=str(pretrained[1] / 'full.pth'))
    vit = vit_det(img_size=64, init_cfg=init_cfg)
    vit.init_weights()
    assert 'pos_embed: 8x8 to 16x16' in said[0]
    assert 'layers.0.attn.rel_pos_h' in said[0]  # new
    # sine-cosine positions of twice the grid, in the middle of the image
    expected = nn.functional.interpolate(
        pretrained[0].backbone.pos_embed[:, 1:].reshape(1, 8, 8, 48).permute(
            0, 3, 1, 2), (16, 16), mode='bicubic', antialias=True)
    torch.testing.assert_close(vit.pos_embed.permute(0, 3, 1, 2), expected)
    for change in (dict(patch_size=8), dict(patch_size=8, img_size=64)):
        with pytest.raises(
                CheckpointError, match='of 4 pixels(.|\n)*of 8 pixels'):
            vit_det(init_cfg=init_cfg, **change).init_weights()


def test_the_pyramid():
    neck = SimpleFPN(48, out_channels=16, num_outs=5)
    x = torch.randn(2, 48, 8, 8)
    outs = neck([None, x])
    assert [tuple(o.shape) for o in outs] == [
        (2, 16, s, s) for s in (32, 16, 8, 4, 2)
    ]
    # the third level by hand: convolutions with LayerNorm over channels
    level = neck.levels[2]
    y = level[1](x)
    y = nn.functional.layer_norm(y.permute(0, 2, 3, 1), (16, ), eps=1e-6)
    y = level[3](y.permute(0, 3, 1, 2))
    y = nn.functional.layer_norm(y.permute(0, 2, 3, 1), (16, ), eps=1e-6)
    torch.testing.assert_close(outs[2], y.permute(0, 3, 1, 2), atol=1e-5,
                               rtol=1e-4)
    torch.testing.assert_close(outs[4], outs[3][:, :, ::2, ::2])
    with torch.autocast('cpu', torch.bfloat16):
        assert all(o.dtype == torch.float32 for o in neck([x]))
    for kwargs in (dict(in_channels=50), dict(in_channels=48, num_outs=3)):
        with pytest.raises(ValueError, match='multiple of 4 and num_outs'):
            SimpleFPN(**kwargs)


class Detector(nn.Module):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = SimpleFPN(48, 16)
        self.head = nn.Linear(16, 2)


def test_layer_decay_of_a_detector():
    """By the formula: decay ** (layers from the top), and what decays."""
    model = Detector(vit_det())
    cfg = ConfigDict(
        type='OptimWrapper',
        constructor='BackboneLayerDecayConstructor',
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1),
        paramwise_cfg=dict(
            layer_decay_rate=0.7,
            norm_decay_mult=0.,
            custom_keys=dict(pos_embed=dict(decay_mult=0.))))
    groups = {
        g['param_name']: g
        for g in build_optim_wrapper(model, cfg).optimizer.param_groups
    }
    assert groups.keys() == {n for n, _ in model.named_parameters()}
    for name, group in groups.items():
        below = 0  # neck and heads
        if name.startswith('backbone.'):
            below = 3
            if name.startswith('backbone.layers.'):
                below = 2 - int(name.split('.')[2])
        assert group['lr'] == pytest.approx(1e-4 * 0.7**below), name
        parent = model.get_submodule(name.rpartition('.')[0])
        no_decay = isinstance(parent, nn.LayerNorm) or 'pos_embed' in name
        assert group['weight_decay'] == (0 if no_decay else 0.1), name
    with pytest.raises(ValueError, match='get_layer_depth.*Linear'):
        build_optim_wrapper(Detector(nn.Linear(1, 1)), cfg)
