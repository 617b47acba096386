"""From images and masks to a finished segmenter."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import COCO, build, model_cfg, needs_coco, require_dense
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.apis.data import stats
from cmae_mm.checkpoints import export_encoder

require_dense('mmseg')

pytestmark = needs_coco


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    """Images and masks: person, sky or ground by the value of COCO's map."""
    root = tmp_path_factory.mktemp('masks')
    for part, count in (('train', 6), ('val', 3)):
        for file in sorted((COCO / f'images/{part}2017').iterdir())[:count]:
            ids = np.asarray(Image.open(
                COCO / f'semantic/{part}2017/{file.stem}.png'))
            mask = np.where(ids == 0, 255, np.where(ids == 1, 1, ids > 100))
            for kind in ('Images', 'masks'):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / 'Images' / part / file.name)
            Image.fromarray(mask.astype(np.uint8)).save(
                root / 'masks' / part / f'{file.stem}.png')
    (root / 'classes.txt').write_text('thing\nstuff\n')
    return root


@pytest.fixture(scope='module')
def finished(masks, tmp_path_factory):
    folder = tmp_path_factory.mktemp('segmenter')
    export_encoder(build(model_cfg()), str(folder / 'encoder.safetensors'))
    done = cmae_mm.finetune(
        masks, folder / 'encoder.safetensors', folder / 'out',
        task='segment', epochs=2, num_workers=0, batch_size=3)
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
    return done


def test_scores_are_those_of_the_runner(finished):
    found = finished.metrics['val']
    assert set(found['per_class']) == {'thing', 'stuff'}
    assert found['images'] == 3
    scalars = next(finished.out.glob('*/vis_data/scalars.json')).read_text()
    best = max(json.loads(line)['mIoU'] for line in scalars.splitlines()
               if 'mIoU' in line)
    assert found['mIoU'] == pytest.approx(best, abs=0.01)
    assert (finished.out / 'val_masks.png').is_file()
    cfg = Config.fromfile(finished.config)
    assert cfg.model.decode_head.num_classes == 2


def test_predict_writes_masks(finished, masks, tmp_path):
    shutil.copytree(masks / 'Images/val', tmp_path / 'new')
    (tmp_path / 'new/broken.jpg').write_bytes(b'nothing')
    done = cmae_mm.predict(finished.out, tmp_path / 'new', tmp_path / 'p.csv',
                           pictures=tmp_path / 'overlays')
    assert (done['images'], done['unreadable']) == (4, 1)
    overlays = [*(tmp_path / 'overlays').glob('*.png')]
    assert len(overlays) == 3 and Image.open(overlays[0]).mode == 'RGB'
    model = cmae_mm.load_model(finished.out)
    for row in csv.DictReader((tmp_path / 'p.csv').open()):
        if row['error']:
            assert row['path'].endswith('broken.jpg') and not row['mask']
            continue
        mask = np.asarray(Image.open(row['mask']))
        with Image.open(row['path']) as image:
            assert mask.shape == image.size[::-1]
        assert float(row['stuff']) == pytest.approx(
            (mask == 1).mean(), abs=1e-4)
        wanted, = model.predict(row['path'])
        assert np.array_equal(wanted.mask, mask)


def test_windows_average_logits(finished, masks):
    model = cmae_mm.load_model(finished.out)
    file = sorted((masks / 'Images/val').iterdir())[0]
    image = np.asarray(Image.open(file).convert('RGB'))[:160, :160]
    # One window is the whole image.
    whole, = model.predict(image)
    for window in (160, 1000):
        one, = model.predict(image, window=window)
        assert (one.mask == whole.mask).mean() > 0.999
    # Several ones, by the definition.
    found, = model.predict(image, window=100, batch_size=3)
    sums = torch.zeros(2, 160, 160)
    for top in (0, 60):
        for left in (0, 60):
            crop = image[top:top + 100, left:left + 100, ::-1]
            logits, = model._score_crops([crop], 1)
            sums[:, top:top + 100, left:left + 100] += logits
    assert np.array_equal(found.mask, sums.argmax(0).numpy())
    assert found.mask.shape == (160, 160)
    # The short side of this image would be resized to nothing.
    line = np.zeros((2, 6000, 3), np.uint8)
    narrow, good = model.predict([line, image])
    assert narrow.mask is None and 'too narrow' in narrow.error
    assert not good.error
    assert model.predict(line, window=9)[0].mask.shape == (2, 6000)


def test_masks_of_geotiff_files_keep_coordinates(finished, masks, tmp_path):
    rasterio = pytest.importorskip('rasterio')
    file = sorted((masks / 'Images/val').iterdir())[0]
    pixels = np.asarray(Image.open(file).convert('RGB')).transpose(2, 0, 1)
    place = dict(
        crs='EPSG:32633', width=pixels.shape[2], height=pixels.shape[1],
        transform=rasterio.transform.from_origin(500000, 5800000, 10, 10))
    with rasterio.open(tmp_path / 'map.tif', 'w', driver='GTiff', count=3,
                       dtype='uint8', **place) as target:
        target.write(pixels)
    cmae_mm.predict(finished.out, tmp_path / 'map.tif', tmp_path / 'p.csv',
                    window=150)
    row, = csv.DictReader((tmp_path / 'p.csv').open())
    with rasterio.open(row['mask']) as mask:
        assert mask.crs.to_epsg() == 32633 and mask.count == 1
        assert mask.transform == place['transform']
        wanted, = cmae_mm.load_model(finished.out).predict(
            tmp_path / 'map.tif', window=150)
        assert np.array_equal(mask.read(1), wanted.mask)
        assert mask.colormap(1)[1][:3] != (0, 0, 0)


def test_options_of_classifiers_are_refused(finished, masks):
    with pytest.raises(ArgumentError, match='top_k and all_scores are for'):
        cmae_mm.predict(finished.out, masks / 'Images/val', top_k=2)


def test_onnx(finished, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    assert cmae_mm.export_model(finished.out, tmp_path / 'm.onnx') < 1e-4
    session = runtime.InferenceSession(str(tmp_path / 'm.onnx'))
    images = torch.rand(2, 3, 32, 32) * 255
    scores, = session.run(None, {'images': images.numpy()})
    assert scores.shape == (2, 2, 32, 32)
    assert np.allclose(scores.sum(1), 1, atol=1e-4)


def test_images_of_16_bits(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (('train', 4), ('val', 2)):
        for number in range(count):
            image = rng.integers(0, 60_000, (32, 32)).astype(np.uint16)
            for kind, array in (
                    ('images', image), ('masks', np.uint8(image > 30_000))):
                folder = tmp_path / kind / part
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f'{number}.png')
    stats(tmp_path / 'images/train', out=tmp_path / 'stats.json',
          num_workers=0)
    done = cmae_mm.finetune(
        tmp_path, 'random', tmp_path / 'out', task='segment', model='mini',
        img_size=32, stats=tmp_path / 'stats.json', epochs=1, num_workers=0,
        batch_size=2)
    assert done.metrics['val']['images'] == 2
    model = cmae_mm.load_model(done.out)
    assert model.in_channels == 1
    path = tmp_path / 'images/val/0.png'
    array = np.asarray(Image.open(path)).astype(np.uint16)
    assert (model.read(path)[..., 0] == array).all()
    for found in model.predict([path, array]):
        assert found.error == '' and found.mask.shape == (32, 32)
