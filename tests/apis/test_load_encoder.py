"""Encoders from a checkpoint without a config."""
import inspect
import re
import textwrap

import numpy as np
import pytest
import torch
from helpers import CLASSIFIER, build, model_cfg
from mmengine.config import Config
from PIL import Image
from safetensors.torch import load_file, save_file

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.checkpoints import (CheckpointError, export_cmae, export_encoder,
                                 find_encoder, read_checkpoint)
from cmae_mm.checkpoints.encoder_config import KEY
from cmae_mm.dependencies import find_checkpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PREPROCESSOR = dict(
    type='SelfSupDataPreprocessor', mean=[100., 110., 120.],
    std=[50., 60., 70.], to_rgb=True)


@pytest.fixture(scope='module')
def model():
    """A CMAE whose target differs from its online encoder."""
    model = build(model_cfg(**{'data_preprocessor': PREPROCESSOR})).eval()
    with torch.no_grad():
        for value in model.target.encoder.parameters():
            value.add_(0.01)
    return model


def features(model, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model.extract_feat(IMAGES, **kwargs)


def loaded(path, *args, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return cmae_mm.load_encoder(path, *args, **kwargs)(IMAGES)


@pytest.mark.parametrize('encoder', ['online', 'target'])
@pytest.mark.parametrize('pool', ['mean', 'cls', 'patch'])
def test_features_are_those_of_the_model(model, encoder, pool, tmp_path):
    """Without the target's final norm, as it has none."""
    export_cmae(model, str(tmp_path / 'cmae.pth'))
    expected = features(
        model, pool='none' if pool == 'patch' else pool, encoder=encoder)
    if pool == 'patch':
        expected = expected[:, 1:]
    # CMAE embeds patches by a matrix product, others by a convolution.
    torch.testing.assert_close(
        loaded(tmp_path / 'cmae.pth', encoder, pool=pool), expected,
        rtol=1e-5, atol=1e-5)


def test_training_checkpoint_contains_heads_and_normalisation(pretrained):
    encoder = cmae_mm.load_encoder(pretrained.checkpoint)
    assert not encoder.training
    # a width of 48 is of no named architecture
    assert encoder.backbone.layers[0].attn.num_heads == 3
    assert (encoder.embed_dims, encoder.img_size, encoder.patch_size) == (
        48, 64, 8)
    assert encoder.mean.flatten().tolist() == pytest.approx(
        [123.675, 116.28, 103.53])
    state = read_checkpoint(str(pretrained.checkpoint)).state
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, state[f'backbone.{name}']), name


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize('to', ['mmpretrain', 'timm'])
def test_exports_contain_heads_and_normalisation(model, ending, to, tmp_path):
    path = tmp_path / f'encoder.{ending}'
    export_encoder(model, str(path), to=to)
    assert torch.equal(loaded(path), features(model))
    encoder = cmae_mm.load_encoder(path)
    assert encoder.mean.flatten().tolist() == PREPROCESSOR['mean']
    assert encoder.std.flatten().tolist() == PREPROCESSOR['std']


def test_plain_weights_need_known_sizes_or_arguments(model, tmp_path):
    export_encoder(model, str(tmp_path / 'a.safetensors'))
    save_file(load_file(tmp_path / 'a.safetensors'),
              tmp_path / 'bare.safetensors')
    with pytest.raises(CheckpointError,
                       match=r'48 wide and 2 layers.*set num_heads='):
        cmae_mm.load_encoder(tmp_path / 'bare.safetensors')
    assert torch.equal(
        loaded(tmp_path / 'bare.safetensors', num_heads=4), features(model))
    with pytest.raises(CheckpointError, match='num_heads=5 does not divide'):
        cmae_mm.load_encoder(tmp_path / 'bare.safetensors', num_heads=5)
    with pytest.raises(CheckpointError, match='it records 4 heads'):
        cmae_mm.load_encoder(tmp_path / 'a.safetensors', num_heads=2)


def test_a_vit_s_of_timm_is_known_by_its_sizes(tmp_path):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    vit = timm.create_model(
        'vit_small_patch16_224', img_size=32, num_classes=0).eval()
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    with torch.no_grad():
        expected = vit.forward_features(IMAGES)[:, 1:].mean(1)
    torch.testing.assert_close(
        loaded(tmp_path / 'vit.pth'), expected, atol=1e-5, rtol=1e-4)


def test_another_image_size_resamples_positions(model, tmp_path):
    export_encoder(model, str(tmp_path / 'a.pth'))
    export_encoder(model, str(tmp_path / 'b.pth'), img_size=64)
    a = cmae_mm.load_encoder(tmp_path / 'a.pth', img_size=64)
    b = cmae_mm.load_encoder(tmp_path / 'b.pth')
    assert a.img_size == b.img_size == 64
    assert torch.equal(a.backbone.pos_embed, b.backbone.pos_embed)
    with pytest.raises(CheckpointError, match='does not divide img_size=30'):
        cmae_mm.load_encoder(tmp_path / 'a.pth', img_size=30)


def test_a_target_without_class_token_is_loaded_without_it(tmp_path):
    cmae = build(model_cfg(**{'target.with_cls_token': False})).eval()
    export_cmae(cmae, str(tmp_path / 'cmae.pth'))
    torch.testing.assert_close(
        loaded(tmp_path / 'cmae.pth', 'target'),
        features(cmae, encoder='target'))
    with pytest.raises(CheckpointError, match='not use a class token'):
        cmae_mm.load_encoder(tmp_path / 'cmae.pth', 'target', pool='cls')


def test_a_classifiers_mean_goes_through_its_norm(tmp_path):
    classifier = build(Config(CLASSIFIER)).eval()
    torch.nn.init.normal_(classifier.backbone.ln2.weight)
    torch.save(dict(state_dict=classifier.state_dict(),
                    meta={KEY: dict(num_heads=4)}), tmp_path / 'c.pth')
    with torch.no_grad():
        expected = classifier.backbone(IMAGES)[-1]
    assert torch.equal(loaded(tmp_path / 'c.pth'), expected)


def test_its_state_dict_is_an_exported_backbone(model, tmp_path):
    export_encoder(model, str(tmp_path / 'a.pth'))
    state = cmae_mm.load_encoder(tmp_path / 'a.pth').state_dict()
    found = find_encoder(state)
    assert found.kind == 'an exported backbone'
    assert set(found.state) == set(model.backbone.state_dict())


def test_the_docstrings_example_runs(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'epoch_300.pth').symlink_to(pretrained.checkpoint)
    Image.new('RGB', (90, 70), (10, 200, 30)).save('photo.png')
    text = inspect.getdoc(cmae_mm.load_encoder)
    example = textwrap.dedent(
        re.search(r'Example::\n\n(.*?)\n\n', text, re.S)[1])
    names = {}
    exec(example.replace('photo.jpg', 'photo.png'), names)
    assert names['image'].shape == (3, 64, 64)
    assert names['feature'].shape == (1, 48)
    encoder = names['encoder']
    colour = torch.tensor([10., 200., 30.]).view(3, 1, 1)
    torch.testing.assert_close(
        names['image'], ((colour - encoder.mean) / encoder.std).expand(
            3, 64, 64))
    with Image.open('photo.png') as opened:
        assert torch.equal(encoder.preprocess(opened), names['image'])


@pytest.mark.parametrize('shape,kind', [
    ((2, 3, 64, 64), torch.float32), ((2, 1, 32, 32), torch.float32),
    ((3, 32, 32), torch.float32), ((0, 3, 32, 32), torch.float32),
    ((2, 3, 32, 32), torch.uint8)])
def test_other_images_than_the_encoders_are_refused(
        shape, kind, model, tmp_path):
    export_encoder(model, str(tmp_path / 'a.pth'))
    encoder = cmae_mm.load_encoder(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=(
            r'expects normalised float images, \(N, 3, 32, 32\) with N of 1 '
            rf'or more, but got \({shape[0]}, .* of {kind}; .*img_size=')):
        encoder(torch.zeros(shape, dtype=kind))
    with pytest.raises(ValueError, match='but got a ndarray'):
        encoder(np.zeros((2, 3, 32, 32), 'float32'))
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 48)


def test_a_picture_gives_one_feature_in_every_form(pretrained, tmp_path):
    """And in every format without loss, rotated or not."""
    encoder = cmae_mm.load_encoder(pretrained.checkpoint)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((90, 70))
    opaque = Image.fromarray(
        rng.integers(60, 256, (70, 90), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8
    for turned in (False, True):
        options = dict(exif=exif.tobytes()) if turned else {}
        seen = picture.rotate(90, expand=True) if turned else picture
        expected = encoder.preprocess(np.asarray(seen))
        picture.putalpha(opaque)
        for name, more in (
                ('a.png', options), ('a.webp', dict(
                    lossless=True, exact=True, **options)),
                # Pillow itself turns uncompressed ones wrongly.
                ('a.tif', dict(compression='tiff_lzw', **(
                    dict(tiffinfo={274: 8}) if turned else {})))):
            picture.save(tmp_path / name, **more)
            path = tmp_path / name
            with path.open('rb') as opened, Image.open(path) as image:
                for given in (path, str(path), path.read_bytes(), opened,
                              image):
                    made = encoder.preprocess(given)
                    assert torch.equal(made, expected), (name, type(given))
        picture = picture.convert('RGB')


def test_errors_name_the_allowed_values(model, tmp_path):
    with pytest.raises(ArgumentError, match='there is no checkpoint none'):
        cmae_mm.load_encoder('none.pth')
    with pytest.raises(ArgumentError, match="did you mean 'target'"):
        cmae_mm.load_encoder('none.pth', 'targt')
    with pytest.raises(ArgumentError, match='pool must be one of'):
        cmae_mm.load_encoder('none.pth', pool='max')
    export_encoder(model, str(tmp_path / 'a.pth'))
    with pytest.raises(CheckpointError, match='a.pth: .*no target encoder'):
        cmae_mm.load_encoder(tmp_path / 'a.pth', 'target')
    export_encoder(model, str(tmp_path / 'det.pth'), to='mmdet')
    with pytest.raises(CheckpointError, match='can initialise TransferViTDet'):
        cmae_mm.load_encoder(tmp_path / 'det.pth')


@pytest.mark.parametrize('files, found', [
    (['last_checkpoint', 'epoch_2.pth'], 'epoch_2.pth'),
    (['last_checkpoint', 'epoch_2.pth', 'best.pth'], 'best.pth'),
    (['model.safetensors.index.json', 'config.json'],
     'model.safetensors.index.json'),
    (['pytorch_model.bin'], 'pytorch_model.bin'),
    (['config.py'], ''),
])
def test_a_folder_stands_for_its_checkpoint(files, found, tmp_path):
    for name in files:
        (tmp_path / name).write_text('/elsewhere/epoch_2.pth')
    assert find_checkpoint(tmp_path) == tmp_path / found
