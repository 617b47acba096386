"""From COCO files to a finished detector."""
import csv
import json
import re
import shutil

import numpy as np
import pytest
from helpers import (COCO, ROOT, build, model_cfg, needs_coco, needs_torch,
                     require_dense)
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

import cmae_mm
from cmae_mm.checkpoints import CheckpointError, export_encoder

require_dense('mmdet')
from cmae_mm.finetuning.boxes import read_boxes  # noqa: E402
from cmae_mm.finetuning.export import DeployedDetector  # noqa: E402

pytestmark = needs_coco


@pytest.fixture(scope='module')
def boxes(tmp_path_factory):
    """Persons and other things on a few images of COCO."""
    root = tmp_path_factory.mktemp('boxes')
    (root / 'annotations').mkdir()
    for part, count in (('train', 6), ('val', 3)):
        full = json.loads((
            COCO / f'annotations/instances_{part}2017.json').read_text())
        images = full['images'][:count]
        ids = {one['id'] for one in images}
        found = [dict(one, category_id=1 + (one['category_id'] > 1))
                 for one in full['annotations'] if one['image_id'] in ids]
        (root / f'annotations/instances_{part}2017.json').write_text(
            json.dumps(dict(images=images, annotations=found, categories=[
                dict(id=1, name='person'), dict(id=2, name='thing')])))
        (root / f'images/{part}2017').mkdir(parents=True)
        for one in images:
            name = f'images/{part}2017/{one["file_name"]}'
            shutil.copy(COCO / name, root / name)
    return root


@pytest.fixture(scope='module')
def finished(boxes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('detector')
    export_encoder(build(model_cfg()), str(folder / 'encoder.safetensors'))
    done = cmae_mm.finetune(
        boxes, folder / 'encoder.safetensors', folder / 'out', task='detect',
        epochs=1, num_workers=0, batch_size=3)
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
    return done


def test_scores_are_those_of_the_runner(finished):
    found = finished.metrics['val']
    assert finished.metrics['classes'] == ['person', 'thing']
    assert found['images'] == 3
    scalars = next(finished.out.glob('*/vis_data/scalars.json')).read_text()
    value, = (json.loads(line)['coco/bbox_mAP_50']
              for line in scalars.splitlines() if 'bbox_mAP' in line)
    assert found['AP50'] == pytest.approx(100 * value, abs=0.1)
    # The warm-up is a tenth of the steps at most.
    assert Config.fromfile(finished.config).param_scheduler[0]['end'] == 1


def test_predict_writes_boxes(finished, boxes, tmp_path):
    shutil.copytree(boxes / 'images/val2017', tmp_path / 'new')
    (tmp_path / 'new/broken.jpg').write_bytes(b'nothing')
    done = cmae_mm.predict(finished.out, tmp_path / 'new', tmp_path / 'p.csv',
                           pictures=tmp_path / 'pictures')
    assert (done['images'], done['unreadable']) == (4, 1)
    assert len([*(tmp_path / 'pictures').glob('*.png')]) == 3
    rows = [*csv.DictReader((tmp_path / 'p.csv').open())]
    assert [*rows[0]] == ['path', 'class', 'score', 'x1', 'y1', 'x2', 'y2',
                          'error']
    assert len({row['path'] for row in rows}) == 4
    assert done['boxes'] == sum(bool(row['class']) for row in rows) > 0
    model = cmae_mm.load_model(finished.out)
    for row in rows:
        if row['class']:
            width, height = Image.open(row['path']).size
            assert 0 <= float(row['x1']) < float(row['x2']) <= width
            assert 0 <= float(row['y1']) < float(row['y2']) <= height
    path = rows[0]['path']
    wanted, = model.predict(path)
    assert [b[0] for b in wanted.boxes] == [
        row['class'] for row in rows if row['path'] == path]


def test_windows(finished, boxes):
    model = cmae_mm.load_model(finished.out)
    path = next((boxes / 'images/val2017').iterdir())
    square = np.asarray(Image.open(path).convert('RGB'))[:200, :200]
    whole, = model.predict(square)
    same, = model.predict(square, window=999)
    assert whole.boxes and same.boxes == whole.boxes
    wide = np.concatenate([square, square[:, 50:150]], axis=1)
    merged, = model.predict(wide, window=200)
    parts = [(name, score, x1 + left, y1, x2 + left, y2)
             for left in (0, 100)
             for name, score, x1, y1, x2, y2 in model.predict(
                 wide[:, left:left + 200])[0].boxes]
    assert len(whole.boxes) <= len(merged.boxes) <= len(parts)
    assert max(box[4] for box in merged.boxes) > 200
    for box in merged.boxes:
        assert any(box[0] == one[0] and box[1:] == pytest.approx(
            one[1:], abs=1e-3) for one in parts)


def test_large_decoder_and_boxes_of_polygons(boxes, finished, tmp_path):
    """The heads of the paper; annotations without boxes and areas."""
    copy = tmp_path / 'copy'
    shutil.copytree(boxes, copy)
    file = copy / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    for one in content['annotations']:
        if not one['iscrowd']:
            del one['bbox'], one['area']
    flat = dict(content['annotations'][0], bbox=[1, 1, 0, 5], iscrowd=0)
    content['annotations'].append(dict(flat, id=10**9))
    file.write_text(json.dumps(content))
    whole, found = (read_boxes(root).parts['train'] for root in (boxes, copy))
    assert found.notes[0] == (
        '1 boxes without width or height, or outside of their image, are '
        'skipped')
    for record, wanted in zip(found.records, whole.records):
        for one, box in zip(record['boxes'], wanted['boxes']):
            assert one['bbox'] == pytest.approx(box['bbox'], abs=0.02)
    done = cmae_mm.finetune(
        copy, finished.metrics['encoder'], tmp_path / 'out', task='detect',
        decoder='large', img_size=64, epochs=1, num_workers=0, batch_size=2,
        cfg_options={'model.train_cfg.rcnn.sampler.num': 8,
                     'model.train_cfg.rpn_proposal.max_per_img': 8,
                     'model.test_cfg.rpn.max_per_img': 8})
    assert set(done.metrics['val']['per_class']) == {'person', 'thing'}
    model = cmae_mm.load_model(done.out)
    assert type(model.model.roi_head.bbox_head).__name__ == (
        'Shared4Conv1FCBBoxHead')
    assert not model.predict(copy / 'images/val2017')[0].error


@needs_torch(2, 6, 'export to ONNX')
def test_onnx(finished, boxes, tmp_path, monkeypatch, capsys):
    """The file and the snippet of the docs find the boxes of predict."""
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    with pytest.raises(CheckpointError, match='need float32, not float16'):
        cmae_mm.export_model(finished.out, tmp_path / 'm.onnx', 'float16')
    assert cmae_mm.export_model(finished.out, tmp_path / 'detector.onnx') < 0.1
    page = (ROOT / 'docs/few-labels.md').read_text()
    snippet = next(block for block in re.findall(
        r'```python\n(.*?)```', page, re.S) if 'detector.onnx' in block)
    assert 'torch' not in snippet
    model = cmae_mm.load_model(finished.out)
    session = runtime.InferenceSession(str(tmp_path / 'detector.onnx'))
    monkeypatch.chdir(tmp_path)
    for path in (boxes / 'images/val2017').iterdir():
        array = model.read(path)
        inputs = model.transform(array)['inputs'][[2, 1, 0]].float()
        found = session.run(None, {'images': inputs[None].numpy()})
        found[0] *= np.tile(np.divide(
            array.shape[:2], inputs.shape[1:])[::-1], 2).astype('f4')
        wanted = [x.numpy() for x in model._detect(array)[::-1]]
        (corners, scores, _), (true_corners, true_scores, _) = (
            DeployedDetector.match(found, wanted))
        assert len(scores) > 5
        assert np.abs(scores - true_scores).max() < 1e-4
        assert np.abs(corners - true_corners).max() < 0.01
        shutil.copy(path, 'new.jpg')
        capsys.readouterr()
        exec(snippet, {})
        rows = re.findall(r'(.+?) (\S+) \[(.*)\]', capsys.readouterr().out)
        near = [any(name == row[0] and abs(score - float(row[1])) < 0.02
                    and np.abs(np.subtract(box, [
                        float(v) for v in row[2].split()])).max() < 3
                    for row in rows)
                for name, score, *box in model.predict(path)[0].boxes
                if score > 0.07]
        assert sum(near) >= 0.9 * len(near)
