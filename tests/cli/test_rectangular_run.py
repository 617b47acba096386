"""Commands on images that are no squares, from pre-training to ONNX."""
import json

import numpy as np
import pytest
import torch
from helpers import TORCH, run_commands
from PIL import Image

import cmae_mm
from cmae_mm.evaluation.features import CentreCrop

MODEL = ['work_dirs/mini_scans/epoch_1.pth']


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    """Long images of two classes: stripes one way, and the other."""
    root = tmp_path_factory.mktemp('scans')
    rng = np.random.default_rng(0)
    for part, count in (('train', 12), ('val', 4)):
        for number, name in enumerate(('rising', 'falling')):
            (root / f'scans/{part}/{name}').mkdir(parents=True)
            for i in range(count):
                y, x = np.mgrid[:40, :150]
                wave = np.sin((x + (2 * number - 1) * y) / 6 + i)
                pixels = 127 + 60 * wave + rng.normal(0, 9, (40, 150))
                Image.fromarray(pixels.clip(0, 255).astype('uint8')).convert(
                    'RGB').save(root / f'scans/{part}/{name}/{i}.png')
    for part in ('train', 'val'):
        for kind in ('images', 'maps'):
            (root / f'dense/{kind}/{part}').mkdir(parents=True)
        for i in range(4):
            Image.open(root / f'scans/{part}/rising/{i}.png').save(
                root / f'dense/images/{part}/{i}.png')
            labels = np.ones((40, 150), np.uint8)
            labels[:, :50 + 10 * i] = 2
            Image.fromarray(labels).save(root / f'dense/maps/{part}/{i}.png')
    return root


def test_from_pretraining_to_onnx(scans):
    if TORCH >= (2, 6):  # the oldest version that exports to ONNX
        onnxruntime = pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
    work = ['--num-workers', '0']
    config = 'work_dirs/mini_scans/config.py'
    lines = [
        ['pretrain', 'scans', '--model', 'mini', '--img-size', '32', '96',
         '--epochs', '1', '--batch-size', '8', *work],
        ['knn', 'scans', *MODEL, *work, '--json'],
        ['knn', 'scans', *MODEL, *work, '--img-size', '48', '128', '--json'],
        ['linear', 'scans', *MODEL, *work, '--json'],
        ['low-shot', 'scans', *MODEL, *work, '--json'],
        ['dense-knn', 'dense', *MODEL, '--json'],
        ['embed', 'scans/val', *MODEL, '--out', 'features.npz', *work],
        ['views', config, '--out', 'views.png', '--most', '2'],
        ['reconstruct', *MODEL, 'scans/val/rising', '--most', '2'],
        ['attention', *MODEL, 'scans/val/rising', '--most', '2'],
        ['features', *MODEL, 'scans/val/rising', '--most', '2'],
        ['map', 'scans/val', *MODEL, '--method', 'tsne', *work],
        ['nearest', 'scans/val', *MODEL, 'scans/val/rising/0.png',
         '--count', '2', *work],
        ['export', config, *MODEL, 'encoder.onnx', '--to', 'onnx'],
        ['export', config, *MODEL, 'small.safetensors', '--to', 'mmpretrain',
         '--img-size', '16', '64'],
        ['finetune', 'scans', *MODEL, '--epochs', '1', '--out', 'tuned',
         *work],
        ['predict', 'tuned', 'scans/val/rising', '--out', 'predicted.csv'],
        ['export', 'tuned', 'tuned.onnx'],
        ['finetune', 'scans', *MODEL, '--task', 'segment', *work],
        ['pretrain', 'scans', '--model', 'mini', '--img-size', '32', '90'],
        ['pretrain', 'scans', '--model', 'mini', '--img-size', '32', '72'],
        ['knn', 'scans', *MODEL, '--img-size', '32', '90'],
        ['knn', 'scans', *MODEL, '--img-size', '32', '96', '3'],
    ]
    results = run_commands(*lines, cwd=scans)
    for line, (code, output) in zip(lines[:-5], results):
        if line[-1] == 'onnx' or line[-1].endswith('.onnx'):
            if TORCH < (2, 6):
                assert code == 1 and 'needs torch 2.6' in output
                continue
        assert code == 0, (line, output[-3000:])
    for (code, output), said in zip(results[-5:], (
            'the task segment needs square images, but got 32x96',
            'patch_size=8 does not divide img_size=32x90; choose an image',
            'mask_block=2 does not divide the 4x9 grid of patches',
            'patch_size=8 does not divide img_size=32x90',
            'img_size must be')):
        assert code in (1, 2) and said in output
        assert 'Traceback' not in output
    assert 'views          32x96 pixels, shifted by less than 4' in (
        results[0][1])
    known = json.loads(results[1][1].splitlines()[-1])
    assert known['top1'] > 60  # of two classes

    encoder = cmae_mm.load_encoder(scans / MODEL[0])
    assert encoder.img_size == (32, 96) and encoder.grid == (4, 12)
    names = sorted((scans / 'scans/val').rglob('*.png'))
    images = torch.stack([encoder.preprocess(name) for name in names])
    with torch.no_grad():
        expected = encoder(images).numpy()
    stored = np.load(scans / 'features.npz')
    order = [names.index(scans / 'scans/val' / name)
             for name in stored['paths']]
    np.testing.assert_allclose(
        stored['features'], expected[order], atol=1e-4)
    assert cmae_mm.load_encoder(
        scans / 'small.safetensors').img_size == (16, 64)
    tuned = cmae_mm.load_model(scans / 'tuned')
    assert tuned.img_size == (32, 96)
    # pictures have the aspect of the views
    for name, columns in (('views', 4), ('reconstruction', 4),
                          ('attention', 2), ('features', 2)):
        width, height = Image.open(scans / f'{name}.png').size
        assert width > 1.5 * height * columns / 4, name
    if TORCH < (2, 6):
        return
    session = onnxruntime.InferenceSession(str(scans / 'encoder.onnx'))
    assert session.get_inputs()[0].shape[1:] == [3, 32, 96]
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta['img_size']) == [32, 96]
    pixels = (images * encoder.std + encoder.mean).numpy()
    np.testing.assert_allclose(
        session.run(['features'], dict(images=pixels))[0], expected, atol=1e-4)
    session = onnxruntime.InferenceSession(str(scans / 'tuned.onnx'))
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, dict(images=pixels))[0],
            tuned(torch.from_numpy(pixels)), atol=1e-4)


@pytest.mark.parametrize('size', [(32, 64), (64, 32), 48])
@pytest.mark.parametrize('shape', [(90, 120), (40, 200), (200, 40), (60, 60)])
def test_crops_of_evaluation(size, shape):
    """As small as they still cover the crop and its margin; the centre."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    image = np.stack([y * 250. / shape[0], x * 250. / shape[1], 0 * x], -1)
    crop = CentreCrop(size)
    found = crop(image.astype(np.uint8)[..., ::-1]).float()  # BGR, as decoded
    height, width = (size, size) if isinstance(size, int) else size
    assert found.shape == (3, height, width)
    # the part of the image that is seen, by Pillow's coordinates
    scale = max(height * 8 / 7 / shape[0], width * 8 / 7 / shape[1])
    seen = height / scale / shape[0], width / scale / shape[1]
    for channel, part, side in zip(found[:2], seen, (height, width)):
        low, high = (125 * (1 - part), 125 * (1 + part))
        pixels = 3 + 2 * 250 * part / side  # two, and rounding
        assert abs(channel.min() - low) < pixels
        assert abs(channel.max() - high) < pixels
