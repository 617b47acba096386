"""The whole model: losses, ablations, the target, features."""
import pytest
import torch
from helpers import build, model_cfg
from mmpretrain.models import MAE, MAEPretrainDecoder  # noqa: F401
from mmpretrain.registry import MODELS

from cmae_mm.models import CMAENeck
from cmae_mm.visualization import reconstruct

SIZES = [
    # width, depth, image, patch
    (48, 2, 32, 4),
    (64, 1, 48, 8),
    (32, 3, 64, 16),
    (80, 2, 28, 14),
]


def views(n=4, size=32):
    return [torch.randn(n, 3, size, size) for _ in range(2)]


def total(losses):
    return sum(v for k, v in losses.items() if 'loss' in k)


@pytest.mark.parametrize('width, depth, size, patch', SIZES)
def test_every_size_has_its_shapes_and_gradients(width, depth, size, patch):
    model = build(
        model_cfg(width, depth, size, patch, **{
            'backbone.mask_block': 1,
            'backbone.mask_ratio': 0.5
        }))
    losses = model.loss(views(size=size))
    assert set(losses) >= {'loss_rc', 'loss_ct', 'rho_pos', 'rho_neg'}
    assert all(v.dim() == 0 and v.isfinite() for v in losses.values())
    total(losses).backward()
    for name, p in model.named_parameters():
        if name.startswith('target.'):
            assert not p.requires_grad and p.grad is None, name
        elif p.requires_grad:
            assert p.grad is not None and p.grad.isfinite().all(), name
        else:
            assert 'pos_embed' in name
    grid = size // patch
    tokens, ids = model.backbone(views(size=size)[0],
                                 model.backbone.generate_mask(4, 'cpu'))
    pixels, projection = model.neck(tokens, ids)
    removed = grid * grid - tokens.shape[1] + 1
    assert pixels.shape == (4, removed, patch * patch * 3)
    assert projection.shape == (4, 16)
    assert model.extract_feat(views(size=size)).shape == (4, width)


@pytest.mark.parametrize('arch, patch', [
    ('mini', 16), ('deit-small', 16), ('b', 16), ('l', 16), ('h', 14)])
def test_standard_sizes_build(arch, patch):
    with torch.device('meta'):
        model = MODELS.build(
            dict(
                type='CMAE',
                backbone=dict(type='CMAEViT', arch=arch, patch_size=patch),
                neck=dict(),
                head=dict(contrastive=dict())))
    width = model.backbone.embed_dims
    assert model.neck.feature_decoder.decoder_pred.out_features == width
    assert model.neck.projector.fc0.in_features == width
    assert model.neck.pixel_decoder.decoder_pred.out_features == 3 * patch**2


ABLATIONS = {
    'byol': {'head.contrastive.loss_style': 'byol'},
    'weight': {'head.contrastive.loss_weight': 0.5},
    'temperature': {'head.contrastive.temperature': 0.2},
    'paper loss': {'head.contrastive.scale_by_temperature': False},
    'no feature decoder': {'neck.feature_decoder': None},
    'feature decoder of depth 0': {'neck.feature_decoder.decoder_depth': 0},
    'feature decoder of depth 3': {'neck.feature_decoder.decoder_depth': 3},
    'feature width of its own': {'neck.feature_decoder.out_dims': 20},
    'masked target': {'target.mask_ratio': 0.5},
    'target without class token': {'target.with_cls_token': False},
    'target with final norm': {'target.final_norm': True},
    'momentum': {'target.momentum': 0.9},
    'single patches at 75%': {
        'backbone.mask_ratio': 0.75,
        'backbone.mask_block': 1
    },
}


@pytest.mark.parametrize('name', ABLATIONS)
def test_every_ablation_is_a_config_value(name):
    model = build(model_cfg(**ABLATIONS[name]))
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = [p.clone() for p in model.target.parameters()]
    losses = model.loss(views())
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters()
               if p.requires_grad)
    optimizer.step()
    model.target.update(model.backbone, model.neck.projector)
    assert total(losses).isfinite()
    assert any(not torch.equal(a, b)
               for a, b in zip(before, model.target.parameters()))


def test_absent_feature_decoder_pools_the_visible_tokens():
    model = build(model_cfg(**{'neck.feature_decoder': None}))
    tokens = torch.randn(3, 21, 48)
    torch.testing.assert_close(
        model.neck.pool_feature(tokens, None), tokens[:, 1:].mean(1))


def test_masked_target_sees_fewer_tokens():
    model = build(model_cfg(**{'target.mask_ratio': 0.5}))
    seen = []
    encode = model.target.encoder.encode
    model.target.encoder.encode = lambda t: seen.append(t.shape) or encode(t)
    model.loss(views())
    assert seen == [(4, 33, 48)]
    # the online branch keeps its own ratio
    assert model.backbone.mask_ratio == 0.65


@pytest.mark.parametrize('final_norm', [True, False])
def test_target_starts_as_the_online_branch(final_norm):
    model = build(model_cfg(**{'target.final_norm': final_norm}))
    norm = {'ln1.weight', 'ln1.bias'}
    for own, online, lacks in (
            (model.target.encoder, model.backbone,
             set() if final_norm else norm),
            (model.target.projector, model.neck.projector, set())):
        own, online = own.state_dict(), online.state_dict()
        assert set(online) - set(own) == lacks and own
        assert all(torch.equal(v, online[k]) for k, v in own.items())
    # and is saved under these names, beside its count of updates
    assert {k.split('.')[1] for k in model.state_dict()
            if k.startswith('target.')} == {'encoder', 'projector', 'steps'}


def test_target_without_class_token_attends_to_patches_alone():
    model = build(model_cfg(**{'target.with_cls_token': False})).eval()
    image = views()[0]
    before = model.extract_feat(image, encoder='target')
    assert model.target.encode(image).shape == (4, 64, 48)
    with torch.no_grad():
        model.target.encoder.cls_token += 1
    assert torch.equal(model.extract_feat(image, encoder='target'), before)
    with pytest.raises(ValueError, match='target encoder does not use'):
        model.extract_feat(image, pool='cls', encoder='target')


def test_mae_is_mmpretrains_mae():
    """Without the contrastive branch the loss is that of MAE."""
    cfg = model_cfg(contrastive=False)
    model = build(cfg)
    assert model.target is None
    mae = MODELS.build(
        dict(
            type='MAE',
            backbone=dict(
                type='MAEViT',
                arch=cfg.backbone.arch,
                img_size=32,
                patch_size=4),
            neck=dict(
                type='MAEPretrainDecoder',
                num_patches=64,
                patch_size=4,
                embed_dim=48,
                decoder_embed_dim=32,
                decoder_depth=1,
                decoder_num_heads=4),
            head=dict(
                type='MAEPretrainHead',
                norm_pix=True,
                patch_size=4,
                loss=dict(type='PixelReconstructionLoss', criterion='L2'))))
    mae.backbone.load_state_dict(model.backbone.state_dict())
    mae.neck.load_state_dict(model.neck.pixel_decoder.state_dict())
    image = views()[0]
    # mmpretrain's mask, used by both
    torch.manual_seed(1)
    theirs = mae.loss(image, None)['loss']
    torch.manual_seed(1)
    _, mask, _ = mae.backbone(image)
    model.backbone.generate_mask = lambda n, device: mask.bool()
    ours = model.loss(image)
    assert set(ours) == {'loss_rc'}
    torch.testing.assert_close(ours['loss_rc'], theirs)


def test_reconstruction_puts_predictions_in_removed_patches_alone():
    model = build(model_cfg())
    image = views()[0]
    made = reconstruct(model, image)
    removed = model.head.reconstruction.unpatchify(
        made['mask'][..., None].float().expand(-1, -1, 48)) > 0
    for picture in (made['masked'], made['reconstruction']):
        assert torch.equal(picture[~removed], image[~removed])
    assert (made['masked'][removed] == 0).all()
    assert not torch.allclose(made['reconstruction'][removed], image[removed])


def test_the_decoder_is_mmpretrains_where_there_is_a_class_token():
    sizes = dict(
        num_patches=64, patch_size=4, embed_dim=48, decoder_embed_dim=32,
        decoder_depth=2, decoder_num_heads=4)
    theirs = MAEPretrainDecoder(**sizes)
    theirs.init_weights()
    neck = CMAENeck(48, 64, 4, pixel_decoder=dict(
        decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4))
    ours = neck.pixel_decoder
    ours.load_state_dict(theirs.state_dict())
    tokens, mask = torch.randn(3, 21, 48), torch.rand(3, 64).argsort(1) >= 20
    ids = mask.int().argsort(dim=1, stable=True).argsort(dim=1)
    every = theirs(tokens, ids)
    torch.testing.assert_close(ours(tokens, ids), every)
    torch.testing.assert_close(
        ours(tokens, ids, of='masked'), every[mask].view(3, 44, -1))
    torch.testing.assert_close(ours(tokens, ids, of='mean'), every.mean(1))


def test_the_decoder_without_a_class_token_sees_patches_alone():
    neck = CMAENeck(
        48, 64, 4, num_extra_tokens=0, feature_decoder=None,
        pixel_decoder=dict(
            decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4))
    neck.init_weights()
    decoder, tokens = neck.pixel_decoder, torch.randn(2, 64, 48)
    # All visible, in order: the blocks see positions 1 to 64 and no others.
    x = decoder.decoder_embed(tokens) + decoder.decoder_pos_embed[:, 1:]
    expected = decoder.decoder_pred(decoder.ln1(decoder.decoder_blocks[0](x)))
    made = decoder(tokens, torch.arange(64).expand(2, 64))
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(
        neck.pool_feature(tokens, None), tokens.mean(1))


def test_features_for_evaluation():
    model = build(model_cfg()).eval()
    image = views()[0]
    tokens = model.extract_feat(image, pool='none')
    assert tokens.shape == (4, 65, 48)
    torch.testing.assert_close(
        model.extract_feat(image, pool='cls'), tokens[:, 0])
    torch.testing.assert_close(model(image), tokens[:, 1:].mean(1))
    target = model.extract_feat(image, encoder='target')
    assert target.shape == (4, 48) and not torch.allclose(target, model(image))
    with pytest.raises(ValueError, match="'median'"):
        model.extract_feat(image, pool='median')
    with pytest.raises(ValueError, match='no target encoder'):
        build(model_cfg(contrastive=False)).extract_feat(
            image, encoder='target')


def test_one_view_is_refused():
    with pytest.raises(ValueError, match='two views .* but got 1'):
        build(model_cfg()).loss(views()[:1])
