"""Folders for transformers and timm, read by these libraries alone."""
import json

import numpy as np
import pytest
import timm
import torch
import transformers
from helpers import build, model_cfg
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from PIL import Image

import cmae_mm
from cmae_mm.checkpoints import (CheckpointError, export_classifier,
                                 export_encoder)

ARCH = dict(
    embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)
PREPROCESSOR = dict(mean=[120., 110., 100.], std=[60., 50., 40.])


def shaken(model):
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    model.eval()
    return model


@pytest.fixture
def model():
    return shaken(build(model_cfg(48, 2, 32, 4, data_preprocessor=dict(
        type='SelfSupDataPreprocessor', **PREPROCESSOR))))


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(
        256, size=(60, 60, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def test_transformers_reads_the_folder_alone(model, picture, tmp_path):
    """AutoModel, AutoImageProcessor and a pipeline; and back again."""
    export_encoder(model, str(tmp_path), 'hf', epoch=3)
    vit, info = transformers.AutoModel.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path, use_fast=False)
    encoder = cmae_mm.load_encoder(tmp_path)
    assert encoder.mean.flatten().tolist() == PREPROCESSOR['mean']
    pixels = processor(picture, return_tensors='pt').pixel_values
    ours = encoder.preprocess(picture)[None]
    assert (pixels - ours).abs().mean() < 1e-3
    with torch.no_grad():
        found = vit(pixels)
        expected = model.backbone(pixels)[0]
        torch.testing.assert_close(
            found.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        if hasattr(transformers.ViTConfig(), 'pooler_act'):
            torch.testing.assert_close(
                found.pooler_output, expected[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            encoder.tokens(pixels), expected, atol=1e-6, rtol=1e-6)
    extract = transformers.pipeline(
        'image-feature-extraction', str(tmp_path), use_fast=False)
    torch.testing.assert_close(
        torch.tensor(extract(picture)), expected, atol=1e-4, rtol=1e-4)
    grey = Image.fromarray(np.asarray(picture)[..., 0])
    assert len(extract(grey)[0]) == 65  # converted to RGB
    card = (tmp_path / 'README.md').read_text()
    assert 'pipeline_tag: image-feature-extraction' in card
    assert '| epoch | `3` |' in card
    # settings of the folder alone give the same
    settings = json.loads((tmp_path / 'preprocessor_config.json').read_text())
    assert settings['size'] == dict(shortest_edge=37)
    vit.save_pretrained(tmp_path / 'again')
    processor.save_pretrained(tmp_path / 'again')
    again = cmae_mm.load_encoder(tmp_path / 'again')
    torch.testing.assert_close(
        again(again.preprocess(picture)[None]),
        encoder(encoder.preprocess(picture)[None]), atol=1e-5, rtol=1e-5)


def test_pretraining_continues_in_transformers(model, tmp_path):
    """The pixel decoder predicts the same from the same visible patches."""
    export_encoder(model, str(tmp_path), 'hf_vitmae')
    mae, info = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    found = mae(images, noise=noise)
    found.loss.backward()
    assert mae.config.norm_pix_loss == model.head.reconstruction.norm_pix
    mask = found.mask.bool()
    with torch.no_grad():
        expected = model.neck.pixel_decoder(*model.backbone(images, mask))
    torch.testing.assert_close(
        found.logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('registers', [0, 4])
def test_timm_reads_a_file_and_a_folder(registers, picture, tmp_path):
    model = shaken(build(model_cfg(
        48, 2, 32, 4, data_preprocessor=dict(
            type='SelfSupDataPreprocessor', **PREPROCESSOR),
        **{'backbone.num_registers': registers})))
    images = torch.randn(2, 3, 32, 32)
    expected = model.backbone(images)[0]
    export_encoder(model, str(tmp_path / 'vit'), 'timm')
    export_encoder(model, str(tmp_path / 'vit.safetensors'), 'timm')
    vit = timm.create_model(f'local-dir:{tmp_path / "vit"}', pretrained=True)
    arch = json.loads((tmp_path / 'vit/config.json').read_text())['model_args']
    other = timm.create_model(
        'vit_base_patch16_224', pretrained=True, pretrained_cfg_overlay=dict(
            file=str(tmp_path / 'vit.safetensors')), num_classes=0, **arch)
    for found in (vit, other):
        torch.testing.assert_close(
            found.eval().forward_features(images), expected, atol=1e-5,
            rtol=1e-5)
    if registers:
        with pytest.raises(CheckpointError, match='with register tokens, or'):
            export_encoder(model, str(tmp_path / 'hf'), 'hf')
    config = timm.data.resolve_model_data_config(vit)
    pixels = timm.data.create_transform(**config)(picture)[None]
    encoder = cmae_mm.load_encoder(tmp_path / 'vit')
    ours = encoder.preprocess(picture)[None]
    assert (pixels - ours).abs().mean() < 1e-3
    torch.testing.assert_close(
        encoder.tokens(images), expected, atol=1e-5, rtol=1e-5)


def classifier(head='LinearClsHead', **options):
    init_default_scope('mmpretrain')
    return shaken(MODELS.build(dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            type='ChannelClsDataPreprocessor', **PREPROCESSOR),
        backbone=dict(
            type='TransferViT', arch=ARCH, img_size=32, patch_size=4,
            out_type='avg_featmap', init_cfg=None,
            **dict(dict(final_norm=False), **options.pop('backbone', {}))),
        head=dict(type=head, num_classes=3, in_channels=48), **options)))


@pytest.mark.parametrize('neck', [
    None, dict(type='ClsBatchNormNeck', input_features=48)])
@pytest.mark.parametrize('head', ['LinearClsHead', 'MultiLabelLinearClsHead'])
def test_classifiers(neck, head, picture, tmp_path):
    model, classes = classifier(head, neck=neck), ['ant', 'bee', 'cat']
    if neck:
        model.neck.bn.running_mean.uniform_(-1, 1)
        model.neck.bn.running_var.uniform_(1, 2)
    export_classifier(model, str(tmp_path / 'hf'), 'hf', classes,
                      short_side=40)
    export_classifier(model, str(tmp_path / 'timm'), 'timm', classes)
    found, info = (
        transformers.AutoModelForImageClassification.from_pretrained(
            tmp_path / 'hf', output_loading_info=True))
    assert not info['missing_keys'] and not info['unexpected_keys']
    assert found.config.id2label == dict(enumerate(classes))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images, mode='tensor')
        torch.testing.assert_close(
            found(images).logits, expected, atol=1e-5, rtol=1e-5)
        vit = timm.create_model(
            f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
        torch.testing.assert_close(
            vit(images), expected, atol=1e-5, rtol=1e-5)
    assert vit.pretrained_cfg['label_names'] == classes
    classify = transformers.pipeline(
        'image-classification', str(tmp_path / 'hf'), use_fast=False)
    assert {row['label'] for row in classify(picture)} == set(classes)
    assert classify.image_processor.size == dict(shortest_edge=40)
    encoder = cmae_mm.load_encoder(tmp_path / 'hf')  # and back
    assert encoder.centre_crop.short_side == 40
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.tokens(images), found.beit(images).last_hidden_state,
            atol=1e-5, rtol=1e-5)


def test_classifiers_that_are_not_exported(tmp_path):
    for options, to in ((dict(backbone=dict(final_norm=True)), 'hf'),
                        (dict(backbone=dict(num_registers=2)), 'hf'),
                        (dict(neck=dict(type='GlobalAveragePooling')), 'timm'),
                        ({}, 'mmseg')):
        with pytest.raises(CheckpointError):
            export_classifier(classifier(**options), str(tmp_path / 'a'), to)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(torch.export, 'Dim'), reason='needs torch 2.2')
def test_the_encoder_is_exported_by_torch(tmp_path):
    """torch.export, with any batch size."""
    model = shaken(build(model_cfg(48, 2, 32, 4)))
    export_encoder(model, str(tmp_path / 'a.pth'))
    encoder = cmae_mm.load_encoder(tmp_path / 'a.pth')
    images = torch.randn(2, 3, 32, 32)
    program = torch.export.export(
        encoder, (images, ), dynamic_shapes=dict(
            images={0: torch.export.Dim('batch')}))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), encoder(images))
