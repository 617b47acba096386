"""Files of other libraries, read by load_encoder: their features."""
import json
import pickle

import pytest
import timm
import torch
import torchvision
import transformers
from helpers import model_cfg
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from safetensors.torch import save_file

import cmae_mm
from cmae_mm.checkpoints import (CheckpointError, load_encoder_into,
                                 read_checkpoint)
from cmae_mm.checkpoints.load import fit_encoder, load_encoder
from cmae_mm.cli.main import parse, run_command
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
    # Without a record of eps, transformers' default.
    path = tmp_path / 'config.json'
    config = json.loads(path.read_text())
    del config['layer_norm_eps']
    path.write_text(json.dumps(config))
    file = tmp_path / 'single.safetensors'
    file.write_bytes((tmp_path / 'model.safetensors').read_bytes())
    for given in (tmp_path, file):
        encoder = assert_same(
            given, images, expected.last_hidden_state, num_heads=4)
        assert encoder.backbone.ln1.eps == 1e-12
        for fitted in (fit_encoder(vit, str(given)),
                       load_encoder(str(given), num_heads=4)):
            assert 'layer norms are assumed to have eps=1e-12' in str(
                fitted.lines)


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


def test_wrapped_and_nested_state_dicts(images, tmp_path):
    """DDP, FSDP, compiled, Lightning, lightly, DINOv2's training, detectron2.

    Also several encoders, of which the trained one is read.
    """
    vit, other = timm_vit(), timm_vit().state_dict()
    expected, plain = vit.forward_features(images), vit.state_dict()

    def under(prefix, state=plain, chunk=''):
        return {f'{prefix}{k}'.replace('blocks.', f'blocks.{chunk}'): v
                for k, v in state.items()}

    optimizer = dict(state={'blocks.0.norm1.weight': dict(
        exp_avg=torch.ones(2))})
    for content in (
            dict(net=plain, ema=other, optimizer=optimizer),
            dict(checkpoint=dict(model=plain), epoch=3),
            dict(state_dict=under('model.backbone.')),
            dict(state_dict={**under('student_backbone.vit.', other),
                             **under('teacher_backbone.vit.')}),
            dict(model={**under('teacher.backbone.', chunk='0.'),
                        **under('student.backbone.', other, '0.')}),
            under('_fsdp_wrapped_module.'),
            {k.replace('blocks.0.', 'blocks.0._checkpoint_wrapped_module.'): v
             for k, v in under('_orig_mod.module.').items()},
            {k: v.numpy() for k, v in plain.items()}):
        torch.save(content, tmp_path / 'vit.pth')
        assert_same(tmp_path / 'vit.pth', images, expected, num_heads=4)
    (tmp_path / 'vit.pkl').write_bytes(pickle.dumps(dict(
        model={f'backbone.net.{k}': v.numpy() for k, v in plain.items()},
        matching_heuristics=True)))
    save_file(plain, tmp_path / 'vit.bin')  # by its content
    for name in ('vit.pkl', 'vit.bin'):
        assert_same(tmp_path / name, images, expected, num_heads=4)
    torch.save({**under('a.'), **under('b.')}, tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match=r'encoders \(a., b.\); save'):
        cmae_mm.load_encoder(tmp_path / 'two.pth')
    swin = timm.models.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=8, depths=(1, 1),
        num_heads=(1, 1), window_size=4)
    torch.save(swin.state_dict(), tmp_path / 'swin.pth')
    with pytest.raises(CheckpointError, match='no vision transformer was fo'):
        cmae_mm.load_encoder(tmp_path / 'swin.pth')


@torch.no_grad()
def test_an_encoder_of_torchvision(images, tmp_path):
    """As it is, and in a model of lightly."""
    vit = shaken(torchvision.models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=2, num_heads=4, hidden_dim=48,
        mlp_dim=96))
    tokens = torch.cat([vit.class_token.expand(2, -1, -1),
                        vit._process_input(images)], dim=1)
    for prefix in ('', 'backbone.vit.'):
        torch.save({prefix + k: v for k, v in vit.state_dict().items()},
                   tmp_path / 'vit.pth')
        assert_same(tmp_path / 'vit.pth', images, vit.encoder(tokens),
                    num_heads=4)


def test_incomplete_files(tmp_path, monkeypatch):
    """Missing last layers and norms give a warning, gaps an error."""
    logged = []
    monkeypatch.setattr(
        'cmae_mm.checkpoints.load.print_log',
        lambda text, level=20, **_: logged.append((text, level)))
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3,
        num_classes=0).state_dict()

    def load(*without, num_heads=None):
        torch.save({k: v for k, v in vit.items() if not k.startswith(without)},
                   tmp_path / 'vit.pth')
        cmae_mm.load_encoder(tmp_path / 'vit.pth', num_heads=num_heads)
        return logged[-1]

    text, level = load('none')
    assert level == 20 and 'warning' not in text
    assert ('it is 192 wide and 12 layers deep with patches of 4 pixels, with '
            '3 heads and 65 positions') in text
    text, level = load('blocks.11.', num_heads=3)
    assert level == 30 and 'named architectures of its width have 12' in text
    text, level = load('norm.')
    assert level == 30 and 'it has no final norm' in text
    with pytest.raises(CheckpointError, match=r'they have \[12\] layers'):
        load('blocks.11.')
    with pytest.raises(CheckpointError, match='layer 3 is missing .counted'):
        load('blocks.3.')


def test_another_activation_is_refused(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(
        hidden_act='quick_gelu', **HF_ARCH)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'quick_gelu', but only gelu"):
        cmae_mm.load_encoder(tmp_path)


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
    run_command(parse(['import', *(str(tmp_path / name) for name in (
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
