"""Files of other libraries, read by load_encoder: their features."""
import json

import pytest
import timm
import torch
import transformers
from helpers import model_cfg
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from safetensors.torch import save_file

import cmae_mm
from cmae_mm.checkpoints import (
    CheckpointError,
    load_encoder_into,
    read_checkpoint,
)
from cmae_mm.cli.command import perform
from cmae_mm.cli.main import parse
from cmae_mm.models import CMAEViT, TransferViT, TransferViTDet

ARCH = dict(
    embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)
HF_ARCH = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=96, mlp_ratio=2, image_size=32, patch_size=4)


def timm_vit(**options):
    vit = timm.models.VisionTransformer(
        img_size=options.pop('img_size', 32), patch_size=4, embed_dim=48,
        depth=2, num_heads=4, mlp_ratio=2, num_classes=0, **options)
    return shaken(vit)


def shaken(model):
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    model.eval()
    return model


def save(model, path, **more):
    state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **more)), path)
    return path


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@torch.no_grad()
def assert_same(path, images, expected, tolerance=1e-5, **options):
    encoder = cmae_mm.load_encoder(path, **options)
    difference = (encoder.tokens(images) - expected).abs().max()
    assert difference < tolerance
    return encoder


def test_settings_of_a_folder_of_transformers(images, tmp_path):
    """Epsilon of the layer norms (1e-12), normalisation and crop."""
    config = transformers.ViTMAEConfig(mask_ratio=0., **HF_ARCH)
    vit = transformers.ViTMAEModel(config).eval()
    vit.save_pretrained(tmp_path)
    processor = transformers.BitImageProcessor(
        image_mean=[.1, .2, .3], image_std=[.4, .5, .6],
        size=dict(shortest_edge=40), crop_size=32)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = vit(images, noise=torch.arange(64.).expand(2, -1))
    encoder = assert_same(tmp_path, images, expected.last_hidden_state)
    assert encoder.backbone.ln1.eps == 1e-12
    image = torch.randint(256, (50, 50, 3), dtype=torch.uint8).numpy()
    theirs = processor(image, return_tensors='pt').pixel_values[0]
    difference = (encoder.preprocess(image) - theirs).abs()
    assert difference.max() < 1.1 / 255 / .4  # rounding of some values
    assert difference.mean() < 1e-3
    vit = CMAEViT(ARCH, img_size=32, patch_size=4)
    load_encoder_into(vit, str(tmp_path))


@pytest.mark.parametrize('field, value', [
    ('image_std', [0, 1, 1]), ('image_std', None), ('image_mean', 'no'),
    ('rescale_factor', 0), ('size', 'big'), ('crop_size', [1])])
def test_wrong_settings_of_a_folder(field, value, tmp_path):
    transformers.ViTModel(
        transformers.ViTConfig(**HF_ARCH)).save_pretrained(tmp_path)
    images = dict(image_mean=[.5] * 3, image_std=[.5] * 3,
                  size=dict(shortest_edge=40), do_center_crop=True,
                  crop_size=dict(height=32, width=32))
    (tmp_path / 'preprocessor_config.json').write_text(
        json.dumps(dict(images, **{field: value})))
    with pytest.raises(CheckpointError):
        cmae_mm.load_encoder(tmp_path)


@pytest.mark.parametrize('registers, no_embed_class',
                         [(4, True), (4, False), (0, True)])
def test_registers_of_timm(registers, no_embed_class, images, tmp_path):
    vit = timm_vit(reg_tokens=registers, no_embed_class=no_embed_class,
                   init_values=.5)
    path = tmp_path / 'vit.pth'
    torch.save(vit.state_dict(), path)
    expected = vit.forward_features(images)
    encoder = assert_same(path, images, expected, num_heads=4)
    torch.testing.assert_close(
        encoder(images), expected[:, 1 + registers:].mean(1))
    encoder.use_layers([-1, 1])
    first, last = vit.get_intermediate_layers(images, [0, 1], norm=True)
    torch.testing.assert_close(
        encoder(images), torch.cat([last, first], dim=2).mean(1))
    ours = CMAEViT(ARCH, img_size=32, patch_size=4, num_registers=registers)
    load_encoder_into(ours, str(path))
    ours.eval()
    torch.testing.assert_close(ours(images)[0], expected)
    tokens, _ = ours(images, ours.generate_mask(2, 'cpu'))
    assert tokens.shape[1] == 1 + registers + 20


@pytest.mark.parametrize('name, extra', [
    pytest.param(name, extra, marks=pytest.mark.skipif(
        not hasattr(transformers, f'{name}Config'),
        reason=f'this transformers has no {name}'))
    for name, extra in dict(
        ViT=1, DeiT=2, Beit=1, Data2VecVision=1, Dinov2=1,
        Dinov2WithRegisters=5, Pixio=8, IJepa=0).items()])
def test_encoders_and_classifiers_of_transformers(
        name, extra, images, tmp_path):
    config = getattr(transformers, f'{name}Config')(
        layerscale_value=.5, layer_scale_init_value=.5, num_register_tokens=4,
        use_absolute_position_embeddings=True, **HF_ARCH)
    for kind in ('Model', 'ForImageClassification'):
        if not hasattr(transformers, name + kind):
            continue
        model = shaken(getattr(transformers, name + kind)(config))
        model.save_pretrained(tmp_path / kind)
        vit = getattr(model, model.base_model_prefix, model)
        encoder = assert_same(
            tmp_path / kind, images, vit(images).last_hidden_state)
        assert encoder.backbone.num_extra_tokens == extra


@pytest.mark.parametrize('extra, nested', [
    (dict(global_pool='avg', class_token=False), True), ({}, False)])
def test_checkpoints_of_two_encoders(extra, nested, images, tmp_path):
    """I-JEPA's, without class token, and MoCo v3's, both of parallel runs."""
    vit, other = timm_vit(**extra), timm_vit(**extra)
    if nested:
        content = {
            name: {f'module.{k}': v for k, v in one.state_dict().items()}
            for name, one in (('encoder', vit), ('predictor', other),
                              ('target_encoder', other))}
        content.update(opt=dict(state={0: dict(step=1)}, param_groups=[]),
                       epoch=3)
    else:
        content = dict(arch='vit', state_dict={
            f'module.{name}.{k}': v for name, one in (
                ('base_encoder', vit), ('momentum_encoder', other))
            for k, v in one.state_dict().items()})
    torch.save(content, tmp_path / 'two.pth')
    assert_same(tmp_path / 'two.pth', images, vit.forward_features(images),
                num_heads=4)


def test_other_positions_are_refused_by_name(tmp_path):
    vit = timm.models.Eva(
        img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        use_abs_pos_emb=False, use_rot_pos_emb=True)
    torch.save(vit.state_dict(), tmp_path / 'dinov3.pth')
    paths = [tmp_path / 'dinov3.pth']
    for name in ('DINOv3ViT', 'Beit'):
        if hasattr(transformers, f'{name}Config'):
            paths.append(tmp_path / name)
            getattr(transformers, f'{name}Model')(
                getattr(transformers, f'{name}Config')(
                    **HF_ARCH)).save_pretrained(paths[-1])
    for path in paths:
        with pytest.raises(CheckpointError, match='rotary .DINOv3'):
            cmae_mm.load_encoder(path)


def test_pixio_has_eight_class_tokens(images, tmp_path):
    """Under the names of its own code and of transformers."""
    vit = timm_vit(reg_tokens=7)
    state = vit.state_dict()
    state['cls_token'] = torch.cat(
        [state['cls_token'], state.pop('reg_token')], dim=1)
    torch.save(state, tmp_path / 'pixio.pth')
    expected = vit.forward_features(images)
    encoder = assert_same(tmp_path / 'pixio.pth', images, expected,
                          num_heads=4)
    torch.testing.assert_close(encoder(images), expected[:, 8:].mean(1))
    pooled = cmae_mm.load_encoder(tmp_path / 'pixio.pth', pool='cls',
                                  num_heads=4)(images)
    torch.testing.assert_close(pooled, expected[:, :8].mean(1))
    hf = {}
    for name, value in state.items():
        for ours, theirs in (
                ('cls_token', 'embeddings.cls_token'),
                ('pos_embed', 'embeddings.position_embeddings'),
                ('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
                ('blocks', 'encoder.layer'),
                ('attn.proj', 'attention.output.dense')):
            name = name.replace(ours, theirs)
        name = f'layer{name}' if name.startswith('norm.') else name
        if 'attn.qkv' in name:
            hf.update({name.replace('attn.qkv', f'attention.attention.{part}'):
                       value for part, value in zip(
                           ('query', 'key', 'value'), value.chunk(3))})
        else:
            hf[name] = value
    folder = tmp_path / 'hf'
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in hf.items()},
              folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(dict(
        model_type='pixio', num_attention_heads=4, layer_norm_eps=1e-6)))
    assert_same(folder, images, expected)


@pytest.mark.parametrize('ours, theirs', [(0, 0), (0, 4), (2, 0), (2, 4)])
def test_an_encoder_is_imported_with_other_registers(
        ours, theirs, tmp_path, capsys):
    init_default_scope('mmpretrain')
    cfg = model_cfg()
    cfg['backbone']['num_registers'] = ours
    Config(dict(model=cfg)).dump(tmp_path / 'cfg.py')
    vit = timm_vit(reg_tokens=theirs).state_dict()
    torch.save(vit, tmp_path / 'vit.pth')
    perform(parse(['import', *(str(tmp_path / name) for name in (
        'cfg.py', 'vit.pth', 'init.pth'))]))
    said = capsys.readouterr().out
    assert ('not loaded: 4 of its register' in said) == (theirs > ours == 0)
    assert ('not loaded: 2 of its register' in said) == (theirs > ours == 2)
    assert ('new, not from the checkpoint: 2 reg' in said) == (ours > theirs)
    found = read_checkpoint(tmp_path / 'init.pth').state
    tokens, positions = (found[f'backbone.{name}'][0] for name in (
        'cls_token', 'pos_embed'))
    assert len(tokens) == 1 + ours and len(positions) == 65 + ours
    registers = min(ours, theirs)
    expected = torch.cat([vit['cls_token'][0],
                          vit.get('reg_token', tokens[None, :0])[0]])
    assert torch.equal(tokens[:1 + registers], expected[:1 + registers])
    assert torch.equal(positions[1 + ours:], vit['pos_embed'][0, 1 + theirs:])
    assert torch.equal(positions[:1 + registers],
                       vit['pos_embed'][0, :1 + registers])


def test_a_classifier_of_mmpretrain(images, tmp_path):
    init_default_scope('mmpretrain')
    model = shaken(MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch=ARCH, img_size=32,
                      patch_size=4, out_type='raw'),
        head=dict(type='VisionTransformerClsHead', num_classes=5,
                  in_channels=48))))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'c.pth')
    assert_same(tmp_path / 'c.pth', images, model.backbone(images)[0],
                num_heads=4)


@pytest.mark.parametrize('options', [
    dict(), dict(final_norm=True, patch_bias=True)])
def test_a_segmentor_of_mmsegmentation(options, images, tmp_path):
    backbones = pytest.importorskip('mmseg.models.backbones')
    vit = shaken(backbones.VisionTransformer(
        img_size=32, patch_size=4, embed_dims=48, num_layers=2, num_heads=4,
        mlp_ratio=2, norm_cfg=dict(type='LN', eps=1e-6), **options))
    path = save(vit, tmp_path / 's.pth', **{
        'decode_head.conv_seg.weight': torch.ones(2)})
    encoder = cmae_mm.load_encoder(path, num_heads=4, pool='patch')
    found = encoder(images).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(found, vit(images)[0])


def test_a_detector_starts_a_detector_alone(tmp_path):
    options = dict(arch=dict(ARCH, global_attn_indexes=[1]), img_size=32,
                   patch_size=4, window_size=2)
    vit = shaken(TransferViTDet(**options))
    path = save(vit, tmp_path / 'd.pth', **{
        'rpn_head.rpn_conv.weight': torch.ones(2)})
    found = TransferViTDet(**options)
    load_encoder_into(found, str(path))
    for name, value in vit.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    with pytest.raises(CheckpointError, match='relative positions for dete'):
        cmae_mm.load_encoder(path, num_heads=4)


@pytest.mark.parametrize('number', [-1, 17, 1.])
def test_a_wrong_number_of_registers(number):
    for cls in (CMAEViT, TransferViT):
        with pytest.raises(ValueError, match='num_registers must be a whole'):
            cls(ARCH, img_size=32, patch_size=4, num_registers=number)
