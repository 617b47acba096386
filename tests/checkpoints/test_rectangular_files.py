"""Encoders of images that are no squares: files, positions, exports."""
import json

import pytest
import timm
import torch
import transformers
from helpers import build, model_cfg
from mmengine.config import Config
from mmpretrain.registry import MODELS
from timm.layers import resample_abs_pos_embed

import cmae_mm
from cmae_mm.checkpoints import (CheckpointError, encoder_record,
                                 export_encoder, load_encoder_into,
                                 resample_pos_embed)
from cmae_mm.checkpoints.load import load_model
from cmae_mm.cli.main import parse, run_command
from cmae_mm.models import CMAEViT, TransferConvViT, TransferViT
from cmae_mm.models import TransferViTDet as Detector

ARCH = dict(
    embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)
# 2 x 8 patches of 4 pixels: as many as of a square of 16 pixels.
SIZE, GRID = (8, 32), (2, 8)


@pytest.fixture
def model():
    cfg = model_cfg(img_size=SIZE)
    cfg['data_preprocessor'] = dict(
        type='SelfSupDataPreprocessor', mean=[100., 105., 110.],
        std=[50., 53., 56.], to_rgb=True)
    return build(cfg).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, *SIZE)


def save(model, path):
    torch.save(dict(state_dict=model.state_dict(),
                    meta=encoder_record(model)), path)
    return path


@pytest.mark.parametrize('old, new', [
    ((4, 4), (2, 8)), ((2, 8), (4, 4)), ((3, 7), (6, 2)), ((5, 5), (3, 4))])
@pytest.mark.parametrize('prefix', [0, 1, 5])
def test_resampled_positions_are_timms(old, new, prefix):
    positions = torch.randn(1, prefix + old[0] * old[1], 8)
    torch.testing.assert_close(
        resample_pos_embed(positions, new, prefix, old),
        resample_abs_pos_embed(
            positions, list(new), list(old), num_prefix_tokens=prefix))
    # rows are rows: positions that depend on the row alone do so again
    rows = torch.arange(old[0]).float().repeat_interleave(old[1])
    found = resample_pos_embed(
        rows.view(1, -1, 1).expand(-1, -1, 8), new, 0, old)
    found = found.view(*new, 8)
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    if old[0] != old[1]:
        with pytest.raises(ValueError, match='not form a square; set'):
            resample_pos_embed(torch.randn(1, 21, 8), new, 0)


def test_own_checkpoints_say_that_they_are_rectangles(
        model, images, tmp_path):
    path = save(model, tmp_path / 'epoch_1.pth')
    expected = model.extract_feat(images, 'none')
    encoder = cmae_mm.load_encoder(path)
    assert encoder.img_size == SIZE and encoder.grid == GRID
    torch.testing.assert_close(encoder.tokens(images), expected)
    # from there to a square of as many patches, and back
    square = cmae_mm.load_encoder(path, img_size=16)
    assert square.img_size == 16
    torch.testing.assert_close(
        square.backbone.pos_embed[:, 1:], resample_pos_embed(
            model.backbone.pos_embed, 4, 1, GRID)[:, 1:])
    for size in (16, SIZE):
        module = CMAEViT(model_cfg().backbone.arch, img_size=size,
                         patch_size=4)
        report = load_encoder_into(module, str(path))
        assert bool(report.resampled) == (size == 16)
        torch.testing.assert_close(
            module.pos_embed, square.backbone.pos_embed if size == 16
            else model.backbone.pos_embed)
    with pytest.raises(ValueError, match=r'\(N, 3, 8, 32\)'):
        encoder(images.transpose(2, 3))
    with pytest.raises(CheckpointError, match='does not divide img_size=8x30'):
        cmae_mm.load_encoder(path, img_size=(8, 30))


def test_a_square_of_as_many_patches_is_resampled(tmp_path, monkeypatch):
    """Equal shapes alone do not make equal grids."""
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.load.print_log',
                        lambda text, **_: said.append(text))
    square = CMAEViT(ARCH, img_size=16, patch_size=4)
    square.init_weights()
    torch.save(dict(state_dict={
        f'backbone.{k}': v for k, v in square.state_dict().items()}),
        tmp_path / 'a.pth')
    module = TransferViT(ARCH, img_size=SIZE, patch_size=4)
    report = load_encoder_into(module, str(tmp_path / 'a.pth'))
    assert report.resampled == ['pos_embed: 4x4 to 2x8']
    assert "taken as 4x4 patches, not as the model's 2x8" in said[-1]
    torch.testing.assert_close(
        module.pos_embed, resample_pos_embed(square.pos_embed, GRID))
    # another rectangle, which is not recorded
    torch.save(TransferViT(ARCH, img_size=(12, 20), patch_size=4).state_dict(),
               tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match="its 15 positions of patches .*"
                       "nor of the model's images.*config.json"):
        load_encoder_into(module, str(tmp_path / 'b.pth'))
    for size in (None, (8, 32)):
        with pytest.raises(CheckpointError, match='its 15 positions of patch'):
            cmae_mm.load_encoder(
                tmp_path / 'b.pth', img_size=size, num_heads=4)
    # decoders too, for load_from
    model = build(model_cfg(img_size=16))
    other = build(model_cfg(img_size=SIZE))
    report = load_model(other, model.state_dict())
    assert len(report.resampled) == 4  # encoder, target's, two decoders
    report = load_model(other, other.state_dict(),
                        record=dict(img_size=list(SIZE)))
    assert not report.resampled


@pytest.mark.parametrize('options', [
    dict(), dict(reg_tokens=3), dict(reg_tokens=3, no_embed_class=True),
    dict(no_embed_class=True)])
# 18 patches; 65, which are 64 + 1; 16, which could be a square's
@pytest.mark.parametrize('size', [(24, 12), (20, 52), (8, 32)])
def test_files_of_timm(options, size, tmp_path):
    vit = timm.models.VisionTransformer(
        img_size=size, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=0, **options).eval()
    images = torch.randn(2, 3, *size)
    torch.save(vit.state_dict(), tmp_path / 'a.pth')
    if size == (24, 12):
        with pytest.raises(CheckpointError, match='give the height and width'):
            cmae_mm.load_encoder(tmp_path / 'a.pth', num_heads=4)
    encoder = cmae_mm.load_encoder(
        tmp_path / 'a.pth', img_size=size, num_heads=4)
    torch.testing.assert_close(
        encoder.tokens(images), vit.forward_features(images),
        atol=1e-5, rtol=0)
    # a folder, whose settings say it
    (tmp_path / 'folder').mkdir()
    torch.save(vit.state_dict(), tmp_path / 'folder/pytorch_model.bin')
    (tmp_path / 'folder/config.json').write_text(json.dumps(dict(
        architecture='vit', model_args=dict(num_heads=4, img_size=size),
        pretrained_cfg=dict(input_size=[3, 224, 224], mean=[.5] * 3,
                            std=[.5] * 3))))
    encoder = cmae_mm.load_encoder(tmp_path / 'folder')
    assert encoder.img_size == size
    torch.testing.assert_close(
        encoder.tokens(images), vit.forward_features(images),
        atol=1e-5, rtol=0)


def test_folders_of_transformers(images, tmp_path):
    vit = transformers.ViTModel(transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, image_size=SIZE, patch_size=4)).eval()
    vit.save_pretrained(tmp_path)
    encoder = cmae_mm.load_encoder(tmp_path)
    assert encoder.img_size == SIZE
    torch.testing.assert_close(
        encoder.tokens(images), vit(images).last_hidden_state,
        atol=1e-5, rtol=0)


def test_exports_go_out_and_come_back(model, images, tmp_path):
    expected = model.extract_feat(images, 'none')
    for to, name in (('mmpretrain', 'a.pth'), ('mmpretrain', 'a.safetensors'),
                     ('timm', 'timm'), ('hf', 'hf')):
        export_encoder(model, str(tmp_path / name), to)
        encoder = cmae_mm.load_encoder(tmp_path / name)
        assert encoder.img_size == SIZE
        torch.testing.assert_close(
            encoder.tokens(images), expected, atol=1e-5, rtol=0)
    theirs = timm.create_model(f'local-dir:{tmp_path / "timm"}',
                               pretrained=True).eval()
    torch.testing.assert_close(
        theirs.forward_features(images), expected, atol=1e-5, rtol=0)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / 'hf').eval()
    torch.testing.assert_close(
        theirs(images).last_hidden_state, expected, atol=1e-5, rtol=0)
    # images: of the crop's aspect, or by timm of any
    from PIL import Image
    for size in ((64, 16), (100, 40)):
        picture = Image.effect_noise(size, 60).convert('RGB')
        ours = cmae_mm.load_encoder(tmp_path / 'hf').preprocess(picture)
        cfg = timm.data.resolve_model_data_config(timm.create_model(
            f'local-dir:{tmp_path / "timm"}'))
        made = timm.data.create_transform(**cfg)(picture)
        assert made.shape == ours.shape == (3, *SIZE)
        assert (made - ours).abs().mean() < 0.1
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / 'hf', use_fast=False)
    made = processor(Image.new('RGB', (64, 16)), return_tensors='pt')
    assert made['pixel_values'].shape == (1, 3, *SIZE)
    # another size, and a detector's map of positions
    export_encoder(model, str(tmp_path / 'b.pth'), img_size=(16, 8))
    encoder = cmae_mm.load_encoder(tmp_path / 'b.pth')
    assert encoder.img_size == (16, 8)
    torch.testing.assert_close(
        encoder.backbone.pos_embed, resample_pos_embed(
            model.backbone.pos_embed, (4, 2), 1, GRID))
    path = save(model, tmp_path / 'epoch_1.pth')
    detector = Detector(
        dict(model_cfg().backbone.arch, global_attn_indexes=[1]),
        img_size=SIZE, patch_size=4, window_size=2)
    assert not load_encoder_into(detector, str(path)).resampled
    torch.testing.assert_close(
        detector.pos_embed.flatten(1, 2), model.backbone.pos_embed[:, 1:])
    with pytest.raises(CheckpointError, match='supports square images only'):
        export_encoder(model, str(tmp_path / 'mae'), 'hf_vitmae')


def test_an_imported_rectangle_has_its_record(
        model, images, tmp_path, capsys):
    """Heads, image size, normalisation and epsilon, without a config."""
    Config(dict(model=model_cfg(img_size=SIZE))).dump(tmp_path / 'cfg.py')
    export_encoder(model, str(tmp_path / 'hf.v1'), 'hf')
    run_command(parse(['import', *(str(tmp_path / name) for name in (
        'cfg.py', 'hf.v1', 'init.safetensors'))]))
    encoder = cmae_mm.load_encoder(tmp_path / 'init.safetensors')
    assert encoder.img_size == SIZE
    assert encoder.mean.flatten().tolist() == [100., 105., 110.]
    torch.testing.assert_close(
        encoder.tokens(images), model.extract_feat(images, 'none'),
        atol=1e-5, rtol=0)
    for command, name, words in (
            (['export', 'cfg.py', 'hf.v1', 'a.pt', '--to', 'timm'], 'a.pt',
             'must be a .safetensors or .pth file'),
            (['export', 'cfg.py', 'hf.v1', 'a.pth', '--to', 'hf'], 'a.pth',
             'for Hugging Face name a folder'),
            (['import', 'cfg.py', 'hf.v1', 'a'], 'a',
             'must be a .safetensors or .pth file')):
        with pytest.raises(ValueError, match=words):
            run_command(parse([str(tmp_path / word) if word in (
                'cfg.py', 'hf.v1', name) else word for word in command]))
        assert not (tmp_path / name).exists()


def test_a_hybrid_encoder_and_its_target(tmp_path):
    cfg = model_cfg(img_size=SIZE)
    cfg.backbone = dict(
        type='CMAEConvViT', img_size=SIZE, patch_sizes=(2, 2, 1), mask_block=1,
        arch=dict(embed_dims=[8, 8, 48], depths=[1, 1, 1], num_heads=4))
    model, images = build(cfg).eval(), torch.randn(2, 3, *SIZE)
    path = save(model, tmp_path / 'epoch_1.pth')
    for branch in ('online', 'target'):
        encoder = cmae_mm.load_encoder(path, branch)
        assert encoder.img_size == SIZE
        torch.testing.assert_close(
            encoder.tokens(images),
            model.extract_feat(images, 'none', branch))
    other = TransferConvViT(
        cfg.backbone.arch, img_size=16, patch_sizes=(2, 2, 1))
    assert load_encoder_into(other, str(path)).resampled == [
        'pos_embed: 2x8 to 4x4']


@pytest.mark.parametrize('tokens', [
    dict(num_class_tokens=8), dict(num_class_tokens=2, num_registers=3),
    dict(num_class_tokens=0), dict(num_class_tokens=0, num_registers=1)])
def test_several_class_tokens_go_out_and_come_back(tokens, tmp_path):
    model = build(model_cfg(**{
        f'backbone.{k}': v for k, v in tokens.items()})).eval()
    images = torch.randn(2, 3, 32, 32)
    path = save(model, tmp_path / 'epoch_1.pth')
    export_encoder(model, str(tmp_path / 'a.safetensors'))
    export_encoder(model, str(tmp_path / 'timm'), 'timm')
    theirs = timm.create_model(f'local-dir:{tmp_path / "timm"}',
                               pretrained=True).eval()
    torch.testing.assert_close(
        theirs.forward_features(images), model.extract_feat(images, 'none'),
        atol=1e-5, rtol=0)
    for file in (path, tmp_path / 'a.safetensors'):
        encoder = cmae_mm.load_encoder(file)
        torch.testing.assert_close(
            encoder.tokens(images), model.extract_feat(images, 'none'))
        if tokens['num_class_tokens']:
            torch.testing.assert_close(
                encoder.pooled(encoder.tokens(images), 'cls'),
                model.extract_feat(images, 'cls'))
        else:
            with pytest.raises(CheckpointError, match='not use a class token'):
                cmae_mm.load_encoder(file, pool='cls')
        module = MODELS.build(dict(
            type='TransferViT', arch=model_cfg().backbone.arch, img_size=32,
            patch_size=4, out_type='raw', **tokens))
        assert load_encoder_into(module, str(file)).fits
