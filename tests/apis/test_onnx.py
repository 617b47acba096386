"""Encoders as ONNX files."""
import json
import re
import sys

import numpy as np
import pytest
import torch
from helpers import CLASSIFIER, ROOT, build, model_cfg
from mmengine.config import Config
from PIL import Image

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.checkpoints import CheckpointError, export_encoder, onnx_export
from cmae_mm.cli.main import parse, run_command
from cmae_mm.dependencies import MissingLibrary

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6),
    reason='exporting to ONNX needs torch 2.6')

HYBRID = dict(
    type='CMAEConvViT',
    arch=dict(embed_dims=[8, 12, 16], depths=[1, 1, 1], num_heads=2),
    img_size=32, patch_sizes=(2, 2, 2), mask_ratio=0.5)


PREPROCESSOR = dict(
    type='SelfSupDataPreprocessor', mean=[100., 105., 110.],
    std=[50., 53., 56.], to_rgb=True)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A plain CMAE's file and its config."""
    folder = tmp_path_factory.mktemp('onnx')
    cfg = model_cfg(data_preprocessor=PREPROCESSOR)
    Config(dict(model=cfg)).dump(folder / 'cfg.py')
    model = build(cfg)
    torch.save(model.state_dict(), folder / 'epoch_1.pth')
    export_encoder(model, str(folder / 'online.pth'))
    return folder / 'online.pth'


def images_of(encoder, count):
    shape = (count, encoder.in_channels, encoder.img_size, encoder.img_size)
    return np.random.default_rng(count).uniform(0, 255, shape).astype('f4')


def assert_alike(file, encoder, counts=(1, 5), tolerance=1e-4):
    """ONNX Runtime gives what the loaded encoder gives of batches."""
    session = onnxruntime.InferenceSession(str(file))
    for count in counts:
        images = images_of(encoder, count)
        found = dict(zip([o.name for o in session.get_outputs()],
                         session.run(None, dict(images=images))))
        with torch.no_grad():
            tokens = encoder.tokens(
                encoder.normalize(torch.from_numpy(images))).numpy()
        extra = encoder.backbone.num_extra_tokens
        expected = dict(features=tokens[:, extra:].mean(1),
                        patch_tokens=tokens[:, extra:])
        if extra:
            expected['cls_token'] = tokens[:, 0]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize('encoder, size', [('online', None), ('target', 48)])
def test_the_command_writes_the_same_features(
        encoder, size, checkpoint, tmp_path, monkeypatch):
    file = tmp_path / 'new/encoder.onnx'
    more = ['--img-size', str(size)] if size else []
    result = run_command(parse([
        'export', str(checkpoint.with_name('cfg.py')),
        str(checkpoint.with_name('epoch_1.pth')), str(file), '--to', 'onnx',
        '--encoder', encoder, *more]))
    assert result['difference'] < 1e-4
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    loaded = cmae_mm.load_encoder(
        checkpoint.with_name('epoch_1.pth'), encoder, img_size=size,
        num_heads=4)
    loaded.mean = cmae_mm.load_encoder(checkpoint).mean
    loaded.std = cmae_mm.load_encoder(checkpoint).std
    assert_alike(file, loaded)
    written = onnx.load(str(file))
    assert written.ir_version == 8 and written.opset_import[0].version == 18
    facts = {p.key: json.loads(p.value) for p in written.metadata_props}
    assert facts['img_size'] == (size or 32)
    assert facts['normalised_by'] == dict(
        mean=[100., 105., 110.], std=[50., 53., 56.])
    assert facts['channels'] == 3 and set(facts['outputs']) == {
        'features', 'patch_tokens', 'cls_token'}
    session = onnxruntime.InferenceSession(str(file))
    for shape in ((1, 3, 40, 40), (1, 4, facts['img_size'],
                                   facts['img_size'])):
        with pytest.raises(
                Exception, match='invalid dimensions for input: images'
        ) as error:
            session.run(None, dict(images=np.zeros(shape, 'float32')))
        assert error.typename == 'InvalidArgument'
        assert 'Expected: ' in str(error.value)
    if size is None:
        run_the_pages_example(file, loaded, monkeypatch)


def test_float16(checkpoint, tmp_path):
    """Half the weights; images of any range are normalised in float32."""
    file, names = tmp_path / 'half.onnx', ('cfg.py', 'epoch_1.pth')
    result = run_command(parse([
        'export', *(str(checkpoint.with_name(name)) for name in names),
        str(file), '--to', 'onnx', '--dtype', 'float16']))
    assert 1e-5 < result['difference'] < 2e-2
    encoder = cmae_mm.load_encoder(checkpoint)
    encoder.mean += 7e4  # beyond the largest number of float16
    difference = onnx_export.export_onnx(encoder, file, 'float16')
    assert 1e-5 < difference < 2e-2
    kinds = {tuple(w.dims): w.data_type
             for w in onnx.load(str(file)).graph.initializer}
    assert kinds[(1, 65, 48)] == onnx.TensorProto.FLOAT16
    assert kinds[(3, 1, 1)] == onnx.TensorProto.FLOAT
    images = images_of(encoder, 5) + np.float32(7e4)
    found = onnxruntime.InferenceSession(str(file)).run(
        ['features'], dict(images=images))[0]
    assert found.dtype == np.float32
    with torch.no_grad():
        expected = encoder.encode(torch.from_numpy(images))
    np.testing.assert_allclose(found, expected, atol=1e-2)


def run_the_pages_example(file, encoder, monkeypatch):
    monkeypatch.chdir(file.parent)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.effect_noise((63, 41), 90).convert('RGB').save(
        'photo.jpg', exif=exif)
    page = (ROOT / 'docs/deploy.md').read_text()
    example, = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names['features'].shape == (1, encoder.embed_dims)
    with torch.no_grad():
        expected = encoder(encoder.preprocess('photo.jpg')[None])
    # Pillow's resampling is that of preprocess(), up to rounding.
    np.testing.assert_allclose(names['features'], expected, atol=1e-3)


def test_a_hybrid_encoder_of_six_channels(tmp_path):
    cfg = model_cfg(data_preprocessor=dict(
        type='TwoViewDataPreprocessor', size=32, max_shift=4, canvas_size=36,
        mean=[10. * c for c in range(6)], std=[30. + c for c in range(6)]))
    cfg.backbone = dict(HYBRID, in_channels=6)
    export_encoder(build(cfg), str(tmp_path / 'cmae.safetensors'))
    loaded = cmae_mm.load_encoder(tmp_path / 'cmae.safetensors')
    onnx_export.export_onnx(loaded, tmp_path / 'encoder.onnx')
    assert 'cls_token' not in [
        o.name for o in onnx.load(str(tmp_path / 'encoder.onnx')).graph.output]
    assert_alike(tmp_path / 'encoder.onnx', loaded)


@pytest.mark.parametrize('dtype, tolerance', [
    ('float32', 1e-4), ('float16', 1e-2)])
def test_large_weights_stand_beside_the_file(
        dtype, tolerance, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, '_LARGEST', 1000)
    loaded = cmae_mm.load_encoder(checkpoint)
    onnx_export.export_onnx(loaded, tmp_path / 'encoder.onnx', dtype)
    sizes = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert sizes.keys() == {'encoder.onnx', 'encoder.onnx.data'}
    assert (sizes['encoder.onnx.data'] < 120_000) == (dtype == 'float16')
    assert_alike(tmp_path / 'encoder.onnx', loaded, tolerance=tolerance)


def test_different_outputs_leave_no_file(checkpoint, tmp_path, monkeypatch):
    loaded = cmae_mm.load_encoder(checkpoint)
    monkeypatch.setitem(onnx_export.TOLERANCES, 'float32', -1.)
    with pytest.raises(CheckpointError, match='file was removed'):
        onnx_export.export_onnx(loaded, tmp_path / 'encoder.onnx')
    assert not list(tmp_path.iterdir())


def test_classifier_is_exported_with_the_settings_of_its_config(
        tmp_path, capsys):
    """Heads, normalisation and norm of a checkpoint of nothing but tensors."""
    classifier = build(Config(CLASSIFIER)).eval()
    torch.nn.init.normal_(classifier.backbone.ln2.weight)
    Config(dict(model=CLASSIFIER)).dump(tmp_path / 'cfg.py')
    torch.save(classifier.state_dict(), tmp_path / 'c.pth')
    line = ['export', str(tmp_path / 'cfg.py'), str(tmp_path / 'c.pth'),
            str(tmp_path / 'c.onnx'), '--to', 'onnx']
    with pytest.raises(CheckpointError, match='c.pth: .* no target encoder'):
        run_command(parse([*line, '--encoder', 'target']))
    with pytest.raises(CheckpointError, match='c.pth: .*does not divide'):
        run_command(parse([*line, '--img-size', '30']))
    run_command(parse(line))
    assert 'not exported: the head' in capsys.readouterr().out
    images = np.random.default_rng(0).uniform(
        0, 255, (5, 3, 32, 32)).astype('f4')
    found, = onnxruntime.InferenceSession(str(tmp_path / 'c.onnx')).run(
        ['features'], dict(images=images))
    with torch.no_grad():
        wanted = classifier.backbone((torch.from_numpy(images) - 120) / 60)[-1]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    facts = {p.key: json.loads(p.value) for p in onnx.load(
        str(tmp_path / 'c.onnx')).metadata_props}
    assert facts['outputs']['features'].endswith("the classifier's norm")
    assert facts['normalised_by'] == dict(mean=[120.] * 3, std=[60.] * 3)


def test_arguments_are_checked_before_reading(tmp_path, monkeypatch):
    for name in ('cfg.py', 'c.pth'):
        (tmp_path / name).write_text('neither')
    line = ['export', str(tmp_path / 'cfg.py'), str(tmp_path / 'c.pth')]
    with pytest.raises(ArgumentError, match=r"a .onnx file, but got 'c.pth'"):
        run_command(parse([*line, 'c.pth', '--to', 'onnx']))
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(MissingLibrary, match='needs onnxscript'):
        run_command(parse([*line, 'c.onnx', '--to', 'onnx']))
