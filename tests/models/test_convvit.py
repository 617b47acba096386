"""The hybrid encoder: its stages, with masks and without."""
import pytest
import torch
from helpers import build, model_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_convvit import encode
from torch.nn.functional import layer_norm

from cmae_mm.checkpoints.layouts import to_convmae
from cmae_mm.models import CMAEConvViT, TransferConvViT
from cmae_mm.visualization import reconstruct

ARCH = dict(embed_dims=[8, 12, 16], depths=[1, 2, 1], num_heads=2)


def convvit(**kwargs):
    model = CMAEConvViT(arch=ARCH, **dict(dict(img_size=32, patch_sizes=(
        2, 2, 2), mask_ratio=0.6), **kwargs)).double()
    model.init_weights()
    return model


def plain(model, images, mask):
    """The published form, on maps of zeros: what is fused, normalised."""
    return encode(to_convmae(dict(model.named_parameters())), images, mask,
                  heads=2)['latent']


@given(sides=st.sampled_from([(4, 2, 2), (2, 1, 2), (1, 2, 2), (2, 2, 1)]),
       grid=st.tuples(st.integers(1, 4), st.integers(3, 5)),
       seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_visible_patches_match_masked_maps(sides, grid, seed):
    torch.manual_seed(seed)
    stride = sides[0] * sides[1] * sides[2]
    size = [stride * side for side in grid]
    model = convvit(img_size=size, patch_sizes=sides, mask_block=1)
    images = torch.randn(2, 3, *size).double()
    mask = model.generate_mask(2, 'cpu')
    tokens, ids_restore = model(images, mask)
    expected = plain(model, images, mask)
    torch.testing.assert_close(tokens, expected)
    weights = torch.randn_like(expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad((out * weights).sum(), parameters)
                    for out in (tokens, expected))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
    # nothing of what is removed reaches what is visible
    hidden = mask.view(2, 1, *grid).repeat_interleave(
        stride, 2).repeat_interleave(stride, 3)
    other = torch.where(hidden, torch.randn_like(images), images)
    assert torch.equal(model(other, mask)[0], tokens)
    for before, after, side in zip(
            model.conv_maps(images, mask), model.conv_maps(other, mask),
            model.cell_sides):
        cells = (~mask).view(2, *grid).repeat_interleave(
            side, 1).repeat_interleave(side, 2)
        before, after = (x.movedim(1, -1)[cells] for x in (before, after))
        torch.testing.assert_close(before, after)
    # each visible patch counts
    assert not torch.equal(model(images + 1, mask)[0], tokens)


def test_whole_images():
    model = convvit()
    images = torch.randn(2, 3, 32, 32).double()
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    torch.testing.assert_close(
        model(images)[0], plain(model, images, nothing))
    all_of_them = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(
        model.encode(model.embed(images, all_of_them)), model(images)[0])


def test_named_sizes():
    with torch.device('meta'):
        base = CMAEConvViT()
        assert [p.shape for p in base.fusions[0].parameters()] == [
            (768, 256, 4, 4), (768, )]
        assert base.num_patches == 196 and base.patch_size == 16
        # the sizes on paper, without fusion: 84.6 million parameters
        count = 196 * 768 + 2 * 768 + 768 * 769
        for width, before, depth, convs in (
                (256, 16 * 3, 2, True), (384, 4 * 256, 2, True),
                (768, 4 * 384, 11, False)):
            mixing = (2 * (width + 1) + 25 + 1) * width if convs else (
                4 * width * (width + 1))
            mlp = 8 * width**2 + 5 * width
            count += (before + 1 + 2) * width + depth * (
                mixing + mlp + 4 * width)
        assert count == sum(
            p.numel() for p in TransferConvViT().parameters())
    for arch in ('small', 'mini'):
        assert CMAEConvViT(arch=arch, img_size=64).num_extra_tokens == 0


@pytest.mark.parametrize('kwargs, named', [
    (dict(img_size=(32, 36)), 'product of patch_sizes=8 does not .*=32x36'),
    (dict(img_size=32.), r'img_size must be .* got 32.0'),
    (dict(img_size=24), 'mask_block=2 does not divide the 3x3 grid'),
    (dict(mask_ratio=0.9), 'mask_ratio=0.9 keeps 0 of 4'),
    (dict(patch_sizes=(4, 2)), r'patch_sizes must be three .* got \(4, 2\)'),
    (dict(kernel_size=4), 'kernel_size must be odd.* got 4'),
    (dict(arch='large'), "one of b, base, mini, s, small, .* got 'large'"),
    (dict(arch=dict(embed_dims=[8, 16], depths=[1, 1], num_heads=2)),
     r'embed_dims must be three .* got \(8, 16\)'),
    (dict(arch=dict(embed_dims=[8, 8, 8])), 'lacks depths, num_heads'),
    (dict(arch=dict(ARCH, num_heads=3)), 'num_heads=3 does not divide'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        CMAEConvViT(**dict(dict(arch=ARCH, img_size=32, patch_sizes=(
            2, 2, 2)), **kwargs))


def test_bad_images_are_named():
    with pytest.raises(ValueError, match='built for images of 3 .* 32x32'):
        convvit()(torch.zeros(1, 3, 40, 40).double())
    transfer = TransferConvViT(ARCH, img_size=32, patch_sizes=(2, 2, 2))
    with pytest.raises(ValueError, match='patch_sizes=8 does not divide .*36'):
        transfer(torch.zeros(1, 3, 40, 36))
    # any multiple will do for transfer
    assert transfer(torch.zeros(1, 3, 40, 48))[0].shape == (1, 16)


def hybrid_cfg(channels=3, **overrides):
    cfg = model_cfg(**overrides)
    cfg.backbone = dict(
        type='CMAEConvViT', arch=ARCH, img_size=32, patch_sizes=(2, 2, 2),
        mask_ratio=0.5, in_channels=channels)
    return cfg


@pytest.mark.parametrize('channels', [1, 3, 6])
def test_images_of_any_channels_can_be_transferred(channels, tmp_path):
    """With as many, the same tokens; with others, alike where they are."""
    model = build(hybrid_cfg(channels)).eval()
    images = torch.randn(2, channels, 32, 32)
    losses = model.loss([images, images])
    assert all(v.isfinite() for v in losses.values())
    assert reconstruct(model, images)['reconstruction'].shape == images.shape
    path = str(tmp_path / 'hybrid.pth')
    torch.save(dict(state_dict=model.state_dict()), path)

    def loaded(count):
        transfer = TransferConvViT(
            arch=ARCH, img_size=32, patch_sizes=(2, 2, 2), in_channels=count,
            init_cfg=dict(type='Pretrained', checkpoint=path)).eval()
        transfer.init_weights()
        return transfer

    with torch.no_grad():
        tokens = model.backbone.embed(images).tokens
        for layer in model.backbone.layers:
            tokens = layer(tokens)
        # without fusion; a norm of its own after the mean
        expected = layer_norm(tokens.mean(dim=1), tokens.shape[-1:])
        torch.testing.assert_close(
            loaded(channels)(images)[0], expected, rtol=1e-4, atol=1e-4)
        if channels == 3:
            grey = torch.randn(2, 1, 32, 32)
            for count in (1, 5):
                torch.testing.assert_close(
                    loaded(count)(grey.expand(-1, count, -1, -1))[0],
                    loaded(3)(grey.expand(-1, 3, -1, -1))[0],
                    rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('with_fusion', [True, False])
def test_the_target_sees_the_whole_image(with_fusion):
    model = build(hybrid_cfg(**{'target.with_fusion': with_fusion}))
    assert model.target.num_extra_tokens == 0
    images = torch.randn(2, 3, 32, 32)
    embedded = model.backbone.embed(images)
    tokens = embedded.tokens
    for layer in model.backbone.layers:
        tokens = layer(tokens)
    if with_fusion:
        tokens = tokens + embedded.fused
    torch.testing.assert_close(model.target.encode(images), tokens)
    losses = model.loss([images, images])
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert all(p.grad is not None for p in model.backbone.parameters()
               if p.requires_grad)
    # it follows stages and, where they take part, fusion layers
    before = {n: p.clone() for n, p in model.target.named_parameters()}
    for p in model.backbone.parameters():
        p.data += 0.1
    model.target.update(model.backbone, model.neck.projector)
    moved = [n for n, p in model.target.named_parameters()
             if n.startswith('encoder.') and not torch.equal(p, before[n])]
    fixed = {'encoder.pos_embed'}
    assert {n for n in before if n.startswith('encoder.')} - fixed == set(
        moved)
    assert any('fusions' in n for n in moved) == with_fusion


def test_only_a_hybrid_encoder_has_fusion_layers():
    with pytest.raises(ValueError, match='this CMAEViT has none'):
        build(model_cfg(**{'target.with_fusion': False}))
