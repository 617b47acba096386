"""The encoder: its masks, its masked forward pass, its sizes."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.models.backbones.vision_transformer import \
    TransformerEncoderLayer

from cmae_mm.models import CMAEViT, TransferViT, TransferViTDet, split_by_mask
from cmae_mm.models.utils import PlainAttention, PlainFFN, simplify_layers

ARCH = dict(
    embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)


def vit(**kwargs):
    return CMAEViT(
        arch=ARCH, **dict(dict(img_size=32, patch_size=4), **kwargs))


@given(
    grid=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    patch=st.sampled_from([4, 6, 16]),
    block=st.integers(1, 2),
    ratio=st.floats(0.05, 0.95),
    images=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_mask_keeps_whole_blocks_and_the_same_number(grid, patch, block,
                                                     ratio, images):
    size = [side * block * patch for side in grid]
    units = grid[0] * grid[1]
    keep = int(units * (1 - ratio) + 1e-6)
    if not 0 < keep < units:
        with pytest.raises(ValueError, match='mask_ratio'):
            vit(img_size=size,
                patch_size=patch,
                mask_block=block,
                mask_ratio=ratio)
        return
    model = vit(
        img_size=size,
        patch_size=patch,
        mask_block=block,
        mask_ratio=ratio)
    mask = model.generate_mask(images, 'cpu')
    assert mask.dtype == torch.bool
    assert mask.shape == (images, units * block * block)
    assert ((~mask).sum(1) == keep * block * block).all()
    blocks = mask.view(images, grid[0], block, grid[1], block)
    assert (blocks == blocks[:, :, :1, :, :1]).all()


def test_released_mask_keeps_68_of_196_tokens():
    model = CMAEViT(arch=ARCH)  # the defaults: 224 px, 16, 65 %, 2x2 blocks
    mask = model.generate_mask(3, 'cpu')
    assert ((~mask).sum(1) == 68).all()
    text = CMAEViT(arch=ARCH, mask_ratio=0.75, mask_block=1)
    assert ((~text.generate_mask(3, 'cpu')).sum(1) == 49).all()


def test_each_patch_is_masked_equally_often():
    model = vit(mask_ratio=0.65, mask_block=2)  # keeps 5 of 16 units
    share = model.generate_mask(4000, 'cpu').float().mean(0)
    expected = 11 / 16
    # 5 standard deviations of a binomial share
    assert (share - expected).abs().max() < 5 * (
        expected * (1 - expected) / 4000)**.5


def test_masked_forward_equals_a_plain_selection():
    model = vit().double()
    model.init_weights()
    image = torch.randn(3, 3, 32, 32, dtype=torch.double)
    mask = model.generate_mask(3, 'cpu')
    tokens, ids_restore = model(image, mask)
    for n in range(3):
        visible = (~mask[n]).nonzero().flatten()
        x = model.patch_embed(image[n:n + 1])[0][0] + model.pos_embed[0, 1:]
        x = torch.cat([
            model.cls_token[0] + model.pos_embed[0, :1],
            torch.stack([x[i] for i in visible])
        ])[None]
        for layer in model.layers:
            x = layer(x)
        torch.testing.assert_close(tokens[n], model.ln1(x)[0])
        # the i-th patch is at the index of ids_restore
        assert ids_restore[n, visible].tolist() == list(range(len(visible)))
        assert sorted(ids_restore[n].tolist()) == list(range(64))


def test_without_a_mask_it_is_the_whole_image():
    model = vit()
    out = model(torch.randn(2, 3, 32, 32))
    assert isinstance(out, tuple) and out[-1].shape == (2, 65, 16)


@pytest.mark.parametrize('kwargs, named', [
    (dict(img_size=30), 'patch_size=4 does not divide img_size=30'),
    (dict(img_size=(32, 30)), 'patch_size=4 does not divide img_size=32x30'),
    (dict(img_size=(32, 32, 3)), r'img_size must be .* got \(32, 32, 3\)'),
    (dict(img_size='32'), "img_size must be .* got '32'"),
    (dict(img_size=20, mask_block=2), 'mask_block=2 does not divide the 5x5'),
    (dict(img_size=(32, 20), mask_block=2),
     'mask_block=2 does not divide the 8x5 grid .* multiple of 8'),
    (dict(mask_ratio=0.0), 'mask_ratio=0.0 keeps 16 of 16'),
    (dict(mask_ratio=0.99), 'mask_ratio=0.99 keeps 0 of 16'),
    (dict(mask_ratio=1.5), 'mask_ratio=1.5'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        vit(**kwargs)


@pytest.mark.parametrize('mask, named', [
    (torch.tensor([[True, False, True], [True, False, False]]), '1 to 2'),
    (torch.ones(2, 3, dtype=torch.bool), 'keeps 0 of 3'),
    (torch.zeros(2, 3, dtype=torch.bool), 'keeps 3 of 3'),
])
def test_bad_masks_are_refused(mask, named):
    with pytest.raises(ValueError, match=named):
        split_by_mask(mask)
    with pytest.raises(TypeError, match='bool'):
        split_by_mask(mask.float())


@pytest.mark.parametrize('arch, named', [
    ('s', "backbone.arch='s' is ambiguous; use 'deit-small'"),
    ('Small', "backbone.arch='Small' is ambiguous"),
    ('vit-b', "must be one of b, base, .* but got 'vit-b'"),
    (dict(embed_dims=48, num_layers=2), 'lacks num_heads, feedforward'),
])
def test_an_arch_means_the_same_in_pre_training_and_transfer(arch, named):
    for vit in (CMAEViT, TransferViT):
        with pytest.raises(ValueError, match=named):
            vit(arch=arch)
    # which has no small one at all
    with pytest.raises(ValueError, match='lacks|must be one of b, base'):
        TransferViTDet(arch=arch)
    for name in ('mini', 'deit-small', 'base'):
        assert CMAEViT.arch_zoo[name] == TransferViT.arch_zoo[name]
    mini = CMAEViT.arch_zoo['mini']
    assert mini == dict(
        embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512)
    assert mini.items() < TransferViTDet.arch_zoo['mini'].items()
    # mmpretrain's own names are left as they are
    assert super(CMAEViT, CMAEViT).arch_zoo['s']['embed_dims'] == 768
    assert 'mini' not in super(CMAEViT, CMAEViT).arch_zoo


def test_pretrained_weights_survive_init_weights(tmp_path):
    source = vit()
    source.init_weights()
    path = tmp_path / 'vit.pth'
    torch.save(dict(state_dict=source.state_dict()), path)
    model = vit(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize('options', [
    {}, dict(qkv_bias=False), dict(drop_path_rate=0.5), dict(drop_rate=0.5),
    dict(attn_drop_rate=0.5), dict(layer_scale_init_value=0.1)])
def test_simplified_layers_compute_mmpretrains(options):
    torch.manual_seed(0)
    plain = TransformerEncoderLayer(32, 4, 64, **options)
    ours = copy.deepcopy(plain)
    simplify_layers(ours)
    simple = not options or 'qkv_bias' in options
    assert (type(ours.attn) is PlainAttention) == simple
    assert (type(ours.ffn) is PlainFFN) == (
        simple or 'attn_drop_rate' in options)
    assert list(ours.state_dict()) == list(plain.state_dict())
    images = torch.randn(3, 5, 32)
    made = []
    for layer in (plain, ours):
        torch.manual_seed(1)
        x = images.clone().requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        made.append([out, x.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*made))
