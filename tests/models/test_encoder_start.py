"""Backbones start from pre-trained encoders of any file."""
import pytest
import torch
from helpers import needs_torch
from safetensors.torch import save_file
from transfer_models import ARCH, transfer_vit

from cmae_mm.checkpoints import CheckpointError, load_encoder_into


@pytest.mark.parametrize('name,kind', [
    ('full.pth', 'a pre-training checkpoint'),
    ('exported.safetensors', 'an exported backbone'),
    ('timm.pth', 'an MAE or timm encoder'),
    ('released.pth', 'a released CMAE checkpoint'),
    ('bare.pth', 'a bare encoder'),
])
def test_every_kind_of_checkpoint_gives_the_encoder(pretrained, name, kind,
                                                    monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.load.print_log',
                        lambda text, **kwargs: said.append(text))
    model, folder = pretrained
    vit = transfer_vit(
        out_type='raw',
        init_cfg=dict(type='Pretrained', checkpoint=str(folder / name)))
    vit.init_weights()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit(images)[0], model.backbone(images)[0])
    count = len(model.backbone.state_dict())
    assert kind in said[0] and f'all {count} keys matched' in said[0]


def test_the_target_encoder_too(pretrained):
    model, folder = pretrained
    init_cfg = dict(
        type='Pretrained', checkpoint=str(folder / 'full.pth'),
        encoder='target')
    # the released recipe's target has no final norm
    with pytest.raises(CheckpointError, match='missing'):
        transfer_vit(out_type='raw', init_cfg=init_cfg).init_weights()
    vit = transfer_vit(out_type='raw', final_norm=False, init_cfg=init_cfg)
    vit.init_weights()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit(images)[0], model.target.encode(images))
    with pytest.raises(CheckpointError, match='which has no target encoder'):
        load_encoder_into(vit, str(folder / 'exported.safetensors'), 'target')


def test_positions_are_resampled_and_new_parts_are_logged(
        pretrained, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.load.print_log',
                        lambda text, **kwargs: said.append(text))
    vit = transfer_vit(
        img_size=48, out_type='avg_featmap', final_norm=False,
        init_cfg=dict(
            type='Pretrained', checkpoint=str(pretrained[1] / 'full.pth')))
    vit.init_weights()
    assert 'pos_embed: 8x8 to 12x12' in said[0]
    assert 'not loaded: its final norm' in said[0]
    assert 'new, not from the checkpoint: ln2.weight, ln2.bias' in said[0]


@pytest.mark.parametrize('change,message', [
    (dict(arch=dict(ARCH, embed_dims=64)),
     "encoder is 48 wide .*, the model's 64 wide .*choose the model"),
    (dict(patch_size=8), "patches of 4 pixels, the model's .* of 8 pixels"),
    (dict(arch=dict(ARCH, num_layers=3)), '2 layers deep .* 3 layers deep'),
    (dict(arch=dict(ARCH, feedforward_channels=64)),
     'misshapen(.|\n)*ffn(.|\n)*width, depth'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='')),
     'no checkpoint was given: set model.backbone.init_cfg.checkpoint'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')),
     'there is no checkpoint nowhere.pth'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='x', encode='y')),
     "init_cfg takes .* but got .*'encode'"),
])
def test_a_checkpoint_that_does_not_fit(pretrained, change, message):
    cfg = dict(
        init_cfg=dict(
            type='Pretrained', checkpoint=str(pretrained[1] / 'full.pth')))
    with pytest.raises(CheckpointError, match=message):
        transfer_vit(**{**cfg, **change}).init_weights()


@pytest.mark.parametrize('init_cfg', [
    None, dict(type='Pretrained', checkpoint='random')])
def test_a_random_start(init_cfg, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.load.print_log',
                        lambda text, **kwargs: said.append(text))
    vit = transfer_vit(init_cfg=init_cfg)
    assert vit.pos_embed.abs().max() == 0
    vit.init_weights()
    assert vit.pos_embed.detach().std() == pytest.approx(0.02, rel=0.1)
    assert bool(said) == (init_cfg is not None)
    if said:
        assert 'starts from random weights' in said[0]


def test_a_file_without_encoder(tmp_path):
    save_file({'conv1.weight': torch.zeros(1)}, tmp_path / 'x.safetensors')
    with pytest.raises(CheckpointError, match='no vision tr.* conv1.weight'):
        load_encoder_into(transfer_vit(), str(tmp_path / 'x.safetensors'))


@needs_torch(2, 3, 'compiling without graph breaks')
def test_the_backbone_compiles_to_one_graph():
    """And the compiled classifier's loss has the same gradients."""
    vit = transfer_vit(
        out_type='avg_featmap', final_norm=False, drop_path_rate=0.1)
    images = torch.randn(2, 3, 32, 32)
    explained = torch._dynamo.explain(vit)(images)
    assert explained.graph_break_count == 0, explained.break_reasons

    def gradient(forward):
        vit.zero_grad()
        torch.manual_seed(0)
        forward(images)[0].square().sum().backward()
        return vit.patch_embed.projection.weight.grad.clone()

    torch._dynamo.reset()
    # eager kernels: what is tested is the tracing, forward and backward
    torch.testing.assert_close(
        gradient(torch.compile(vit, backend='aot_eager')), gradient(vit))
