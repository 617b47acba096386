"""Images that are no squares, and several class tokens and registers."""
import numpy as np
import pytest
import timm
import torch
import transformers
from helpers import build, model_cfg
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from plain_reference import patchify

from cmae_mm.checkpoints.layouts import to_hf_vit, to_timm
from cmae_mm.models import CMAEViT, TransferViT
from cmae_mm.models.utils import set_sincos_positions
from cmae_mm.visualization import reconstruct

# Higher than wide in patches of 4: 6 x 4; and wider than high, 2 x 10.
SIZES = [(24, 16), (8, 40)]
ARCH = dict(
    embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)


def plain_positions(rows, columns, dims):
    """First half: sines, then cosines of the row; second half: the column."""
    found = np.zeros((rows, columns, dims))
    quarter = dims // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                rate = 10000**(-i / quarter)
                found[row, column, i::quarter] = [
                    np.sin(row * rate), np.cos(row * rate),
                    np.sin(column * rate), np.cos(column * rate)]
    return torch.from_numpy(found.reshape(1, rows * columns, dims)).float()


@pytest.mark.parametrize('grid', [(6, 4), (2, 10), (5, 5)])
@pytest.mark.parametrize('extra', [0, 1, 3])
def test_sine_cosine_positions(grid, extra):
    positions = torch.ones(1, extra + grid[0] * grid[1], 16)
    set_sincos_positions(positions, grid)
    assert not positions[:, :extra].any()
    torch.testing.assert_close(
        positions[:, extra:], plain_positions(*grid, 16))
    if grid[0] == grid[1]:  # those of all squares before
        assert torch.equal(positions[:, extra:],
                           build_2d_sincos_position_embedding(grid[0], 16))


@pytest.mark.parametrize('kind', ['CMAEViT', 'CMAEConvViT'])
@pytest.mark.parametrize('size', SIZES)
def test_a_model_of_rectangles(kind, size):
    cfg = model_cfg(img_size=size)
    if kind == 'CMAEConvViT':
        cfg.backbone = dict(
            type=kind, img_size=size, patch_sizes=(2, 2, 1), arch=dict(
                embed_dims=[8, 8, 48], depths=[1, 1, 1], num_heads=4))
    model = build(cfg)
    grid = size[0] // 4, size[1] // 4
    assert model.backbone.patch_resolution == grid
    extra = model.backbone.num_extra_tokens
    for positions, start in (
            (model.backbone.pos_embed, extra),
            (model.neck.pixel_decoder.decoder_pos_embed, 1),
            (model.neck.feature_decoder.decoder_pos_embed, 1)):
        torch.testing.assert_close(
            positions[:, start:],
            plain_positions(*grid, positions.shape[-1]))
    images = torch.randn(3, 3, *size)
    mask = model.backbone.generate_mask(3, 'cpu')
    z_v, ids_restore = model.backbone(images, mask)
    pred_pixel, proj_s = model.neck(z_v, ids_restore)
    loss = model.head.loss(pred_pixel, images, mask, proj_s,
                           model.target(images))['loss_rc']
    # the loss of patches that are cut by a plain reference
    x = patchify(images, 4)[mask].view_as(pred_pixel)
    x = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(loss, (pred_pixel - x).square().mean())
    losses = model.loss([images, images.flip(0)])
    (losses['loss_rc'] + losses['loss_ct']).backward()
    assert all(p.grad is not None for n, p in model.named_parameters()
               if p.requires_grad and not n.startswith('target.'))
    # pictures: what is visible is unchanged, at its place
    made = reconstruct(model, images, mask)
    head = model.head.reconstruction
    assert torch.equal(head.unpatchify(head.patchify(images), grid), images)
    shown = (~mask).view(3, 1, *grid).repeat_interleave(
        4, 2).repeat_interleave(4, 3).expand_as(images)
    assert torch.equal(made['reconstruction'][shown], images[shown])
    assert not made['masked'][~shown].any()
    # the reverse size has as many patches, and is refused all the same
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} pixels, but'):
        model.loss([images.transpose(2, 3)] * 2)


@pytest.mark.parametrize('size', SIZES)
def test_features_are_those_of_timm_and_transformers(size):
    """With the sine-cosine positions of a pre-training at its start."""
    vit = CMAEViT(ARCH, img_size=size, patch_size=4, mask_block=1).eval()
    vit.init_weights()
    state = dict(vit.state_dict())
    theirs = timm.models.VisionTransformer(
        img_size=size, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=0).eval()
    theirs.load_state_dict(to_timm(state))
    hf = transformers.ViTModel(transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, image_size=size, patch_size=4,
        layer_norm_eps=1e-6)).eval()
    hf.load_state_dict(to_hf_vit(state), strict=False)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        found = vit(images)[-1]
        torch.testing.assert_close(
            found, theirs.forward_features(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            found, hf(images).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize('tokens', [
    dict(num_class_tokens=8), dict(num_registers=4),
    dict(num_class_tokens=2, num_registers=8), dict(num_class_tokens=0),
    dict(num_class_tokens=0, num_registers=2)])
def test_several_class_tokens_and_registers(tokens):
    model = build(model_cfg(**{
        f'backbone.{k}': v for k, v in tokens.items()}))
    vit, classes = model.backbone, tokens.get('num_class_tokens', 1)
    count = classes + tokens.get('num_registers', 0)
    assert vit.num_extra_tokens == model.neck.num_extra_tokens == count
    if count:
        assert vit.cls_token.shape == (1, count, 48)
        assert vit.cls_token.std() > 0
    images = torch.randn(4, 3, 32, 32)
    mask = vit.generate_mask(4, 'cpu')
    assert vit(images, mask)[0].shape == (4, count + 5 * 4, 48)
    losses = model.loss([images, images.flip(0)])
    (losses['loss_rc'] + losses['loss_ct']).backward()
    assert not count or vit.cls_token.grad.flatten(2).any(dim=2).all()
    # features: the patches without extra tokens, the mean of class tokens
    model.eval()
    tokens_of = {branch: model.extract_feat(images, 'none', branch)
                 for branch in ('online', 'target')}
    for branch, found in tokens_of.items():
        assert found.shape == (4, count + 64, 48)
        torch.testing.assert_close(
            model.extract_feat(images, 'mean', branch),
            found[:, count:].mean(1))
        if classes:
            torch.testing.assert_close(
                model.extract_feat(images, 'cls', branch),
                found[:, :classes].mean(1))
            continue
        with pytest.raises(ValueError, match='does not use the class token'):
            model.extract_feat(images, 'cls', branch)
    # the same network for transfer, by mmpretrain's own forward pass
    transfer = TransferViT(
        model_cfg().backbone.arch, img_size=32, patch_size=4, out_type='raw',
        **tokens).eval()
    transfer.load_state_dict(vit.state_dict())
    torch.testing.assert_close(transfer(images)[0], tokens_of['online'])


def test_one_class_token_is_the_default():
    model = MODELS.build(model_cfg())
    assert model.backbone.cls_token.shape == (1, 1, 48)
    assert model.backbone.num_extra_tokens == 1
    for cls in (CMAEViT, TransferViT):
        for number in (-1, 17, 1.):
            with pytest.raises(ValueError, match='num_class_tokens must be'):
                cls(ARCH, img_size=32, patch_size=4, num_class_tokens=number)
