"""Pre-training starts from encoders of other channels and other libraries."""
import pytest
import torch
from helpers import build, model_cfg
from mmpretrain.registry import MODELS
from transfer_models import transfer_vit

from cmae_mm.checkpoints import CheckpointError, load_encoder_into
from cmae_mm.checkpoints.encoder_config import KEY
from cmae_mm.engine.resuming import START, fit
from cmae_mm.models import CMAE

EMBEDDING = 'patch_embed.projection.weight'


@pytest.fixture
def said(monkeypatch):
    """Log messages during initialisation of weights."""
    lines = []
    for module in ('checkpoints.load', 'models.cmae'):
        monkeypatch.setattr(f'cmae_mm.{module}.print_log',
                            lambda text, **kwargs: lines.append(text))
    return lines


def started(checkpoint, **overrides) -> CMAE:
    """A CMAE whose encoder starts from a file."""
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    return build(model_cfg(**{'backbone.init_cfg': init_cfg, **overrides}))


def features(encoder, images):
    with torch.no_grad():
        return encoder(images)[0]


@pytest.mark.parametrize('channels', [1, 4, 6, 64])
def test_grey_image_gives_the_same_tokens(pretrained, said, channels):
    """Online and target, to float32's rounding."""
    model, folder = pretrained
    other = started(folder / 'full.pth',
                    **{'backbone.in_channels': channels})
    grey = torch.randn(2, 1, 32, 32)
    expected = features(model.backbone, grey.expand(-1, 3, -1, -1))
    many = grey.expand(-1, channels, -1, -1)
    torch.testing.assert_close(
        features(other.backbone, many), expected, atol=1e-5, rtol=1e-4)
    # the target is a copy, but for its final norm
    weight = other.backbone.state_dict()[EMBEDDING]
    assert torch.equal(other.target.encoder.state_dict()[EMBEDDING], weight)
    assert weight.shape[1] == channels
    line = f'{EMBEDDING}: made for {channels} channel(s) of the mean over 3'
    assert line in said[0] and 'not loaded: its head, neck' in said[0]
    assert 'The target starts as a copy' in said[1] and 'new' in said[1]


def test_other_channels_than_three_are_refused(tmp_path):
    first = build(model_cfg(**{'backbone.in_channels': 4}))
    torch.save(dict(state_dict=first.state_dict()), tmp_path / 'four.pth')
    six = {'backbone.in_channels': 6}
    with pytest.raises(CheckpointError,
                       match='four.pth: .*images of 4 channel.*model for 6'):
        started(tmp_path / 'four.pth', **six)
    # of the same channels nothing is changed
    same = started(tmp_path / 'four.pth', **{'backbone.in_channels': 4})
    assert torch.equal(same.backbone.state_dict()[EMBEDDING],
                       first.backbone.state_dict()[EMBEDDING])


def test_a_classifier_of_other_channels_starts_from_it_too(pretrained, said):
    vit = transfer_vit(in_channels=2, out_type='raw', init_cfg=dict(
        type='Pretrained', checkpoint=str(pretrained[1] / 'timm.pth')))
    vit.init_weights()
    assert 'made for 2 channel(s)' in said[0]
    assert vit.patch_embed.projection.weight.shape[1] == 2


def test_load_from_takes_an_encoder_of_colours(pretrained):
    model = build(model_cfg(**{'backbone.in_channels': 5}))
    content = torch.load(pretrained[1] / 'timm.pth', weights_only=False)
    state, lines, copy_target = fit(model, content, START)
    assert state[f'backbone.{EMBEDDING}'].shape[1] == 5 and copy_target
    assert any('made for 5 channel(s)' in line for line in lines)
    whole = dict(state_dict=pretrained[0].state_dict())
    with pytest.raises(CheckpointError, match='load the encoder alone'):
        fit(model, whole, START)


@pytest.mark.parametrize('registers', [0, 4])
def test_a_dinov2_of_timm_gives_its_features(said, tmp_path, registers):
    """LayerScale is folded; register tokens are skipped and logged."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=0, init_values=0.3, reg_tokens=registers,
        no_embed_class=bool(registers)).eval()
    with torch.no_grad():
        for name, value in vit.named_parameters():
            if 'gamma' in name:
                value.uniform_(0.2, 2)
    torch.save(vit.state_dict(), tmp_path / 'dino.pth')
    model = started(tmp_path / 'dino.pth').eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        if registers:  # as timm itself without them
            vit.reg_token, vit.num_reg_tokens = None, 0
            vit.num_prefix_tokens = 1
        expected = vit.forward_features(images)
    torch.testing.assert_close(
        features(model.backbone, images), expected, atol=1e-5, rtol=1e-4)
    assert 'LayerScale was multiplied into' in said[0]
    assert ('not loaded: 4 of its register' in said[0]) == bool(registers)
    # fixed, as sine-cosine positions are, and shared with the target
    assert not model.backbone.pos_embed.requires_grad
    assert torch.equal(
        model.target.encoder.pos_embed, model.backbone.pos_embed)
    losses = model.train().loss([images, images])
    assert all(value.isfinite() for value in losses.values())


def test_another_number_of_heads_is_refused(pretrained, tmp_path):
    content = dict(
        state_dict=pretrained[0].state_dict(), meta={KEY: dict(num_heads=8)})
    torch.save(content, tmp_path / 'eight.pth')
    with pytest.raises(CheckpointError, match='8 attention heads, the model'):
        load_encoder_into(transfer_vit(), str(tmp_path / 'eight.pth'))


@pytest.mark.parametrize('channels', [0, 65, 2.])
def test_invalid_number_of_channels(channels):
    with pytest.raises(ValueError, match='whole number from 1 to 64'):
        MODELS.build(model_cfg(**{'backbone.in_channels': channels}))
