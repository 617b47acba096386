"""From labelled images to a finished model."""
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from helpers import (ROOT, SHARED, build, free_port, model_cfg, needs_torch,
                     run_commands)
from mmengine.config import Config
from PIL import Image

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.apis.finetuning import export_model, predict
from cmae_mm.checkpoints import (CheckpointError, export_encoder,
                                 read_checkpoint, read_encoder_record)
from cmae_mm.datasets.decode import make_settings
from cmae_mm.datasets.source import SourceError
from cmae_mm.engine import ResumableRunner
from cmae_mm.finetuning.data import read_labelled
from cmae_mm.finetuning.model import load_model
from cmae_mm.finetuning.recipe import choose_recipe

ZIP = SHARED / 'data/tiny_imagenet_50.zip'
pytestmark = pytest.mark.skipif(
    not ZIP.is_file(), reason='the photographs are not here')
CLASSES = ['bucket', 'goldfish', 'teapot']
IDS = ['n02909870', 'n01443537', 'n04398044']


def make_photos(folder, counts):
    """Write photographs in class folders: counts of each by part."""
    with zipfile.ZipFile(ZIP) as archive:
        for name, wordnet in zip(CLASSES, IDS):
            start = 0
            for part, count in counts.items():
                target = folder / part / name
                target.mkdir(parents=True)
                for i in range(start, start + count):
                    file = f'{wordnet}_{i}.JPEG'
                    (target / file).write_bytes(archive.read(
                        f'tiny_imagenet_50/train/{wordnet}/{file}'))
                start += count
    return folder


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp('encoder') / 'encoder.safetensors'
    export_encoder(build(model_cfg()), str(path))
    return path


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp('photos'),
                       dict(Train=8, Validation=4, test=3))


@pytest.fixture(scope='module')
def finished(photos, encoder, tmp_path_factory):
    """A tiny classifier, and what its training printed."""
    out = tmp_path_factory.mktemp('out') / 'model'
    return cmae_mm.finetune(photos, encoder, out, epochs=3, num_workers=0)


def test_out_folder(finished, photos):
    names = {p.name for p in finished.out.iterdir()}
    assert {'best.pth', 'config.py', 'metrics.json', 'train.json', 'val.json',
            'test.json', 'val_confusion.png', 'test_confusion.png'} <= names
    assert [p.name for p in finished.out.glob('*.py')] == ['config.py']
    assert not list(finished.out.glob('best_*'))
    _, meta = read_checkpoint(finished.checkpoint)
    assert list(meta['dataset_meta']['classes']) == CLASSES
    assert meta['preprocessing'][0]['type'] == 'LoadImage'
    assert read_encoder_record(meta)['num_heads'] > 0
    metrics = json.loads((finished.out / 'metrics.json').read_text())
    assert metrics == finished.metrics
    assert metrics['train']['images'] == 24
    for part, count in (('val', 12), ('test', 9)):
        found = metrics[part]
        assert found['images'] == np.sum(found['confusion']) == count
        assert found['majority'] == pytest.approx(100 / 3)
        listed = json.loads((finished.out / found['list']).read_text())
        assert len(listed['data_list']) == count
        assert {Path(e['img_path']).parents[1].name
                for e in listed['data_list']} == {Path(found['place']).name}
    picture = Image.open(finished.out / 'val_confusion.png')
    assert min(picture.size) > 300


def test_scores_agree(finished, photos, tmp_path):
    """model.predict, predict, validation and the runner's test agree."""
    model = load_model(finished.out)
    found = {p.path: p for p in model.predict(photos / 'Validation')}
    assert len(found) == 12
    right = sum(p.label == Path(p.path).parent.name for p in found.values())
    scalars = next(finished.out.glob('*/vis_data/scalars.json'))
    accuracies = [
        json.loads(line)['accuracy/top1'] for line in
        scalars.read_text().splitlines() if 'accuracy/top1' in line]
    assert max(accuracies) == pytest.approx(100 * right / 12)
    assert finished.metrics['val']['accuracy'] == pytest.approx(
        100 * right / 12)
    # The framework's runner on the written config.
    cfg = Config.fromfile(finished.config)
    cfg.load_from, cfg.resume = str(finished.checkpoint), False
    cfg.work_dir = str(tmp_path)
    cfg.test_dataloader = cfg.val_dataloader
    runner = ResumableRunner.from_cfg(cfg)
    assert runner.test()['accuracy/top1'] == pytest.approx(100 * right / 12)
    for batch in runner.test_dataloader:
        for sample in runner.model.test_step(batch):
            scores = found[sample.img_path].scores
            assert sample.pred_score.tolist() == pytest.approx(
                [scores[c] for c in CLASSES], abs=1e-4)
    # Arrays, PIL images and lists of them.
    one = next(iter(found.values()))
    image = Image.open(one.path).convert('RGB')
    for given in (image, np.asarray(image), [one.path], [image, one.path]):
        assert model.predict(given)[0].scores == pytest.approx(
            one.scores, abs=1e-6)


def test_predict_writes_tables(finished, photos, tmp_path, capsys,
                               monkeypatch):
    import csv
    logged = []
    monkeypatch.setattr('cmae_mm.finetuning.model.print_log',
                        lambda text, **options: logged.append(text))
    folder = tmp_path / 'new'
    folder.mkdir()
    first = sorted((photos / 'test').rglob('*.JPEG'))[0]
    (folder / 'line\nbreak.jpg').write_bytes(first.read_bytes())
    (folder / 'broken.jpg').write_bytes(first.read_bytes()[:200])
    done = predict(finished.out, folder, tmp_path / 'p.csv', top_k=2,
                   all_scores=True, pictures=tmp_path / 'pictures')
    assert (done['images'], done['unreadable']) == (2, 1)
    assert logged == [f'2 images in {folder}.']  # once
    shown = capsys.readouterr().out
    assert f'unreadable, the first: {folder}/broken.jpg' in shown
    assert f'Wrote the table {tmp_path}/p.csv' in shown
    assert f'Wrote the pictures {tmp_path}/pictures' in shown
    rows = list(csv.DictReader((tmp_path / 'p.csv').open(newline='')))
    assert list(rows[0]) == ['path', 'class', 'score', 'class_2', 'score_2',
                             'error', *CLASSES]
    broken, good = rows
    assert broken['class'] == '' and 'decoded' in broken['error']
    assert json.loads(good['path']) == str(folder / 'line\nbreak.jpg')
    wanted = load_model(finished.out).predict(first)[0]
    assert good['class'] == wanted.label
    assert float(good['score']) == pytest.approx(wanted.score, abs=1e-5)
    assert sum(float(good[c]) for c in CLASSES) == pytest.approx(1, abs=1e-4)
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 1
    parquet = pytest.importorskip('pyarrow.parquet', exc_type=ImportError)
    predict(finished.out, folder, tmp_path / 'p.parquet')
    table = parquet.read_table(tmp_path / 'p.parquet').to_pydict()
    assert table['class'] == [None, wanted.label]


def test_missing_files_of_a_list_are_rows(finished, photos, tmp_path):
    files = sorted((photos / 'test').rglob('*.JPEG'))[:2]
    listed = tmp_path / 'new.txt'
    listed.write_text(f'{files[0]}\n{tmp_path}/gone.jpg\n{files[1]}\n')
    done = predict(finished.out, listed)
    assert (done['images'], done['unreadable']) == (3, 1)
    gone = done['predictions'][1]
    assert gone.label is None and 'No such file' in gone.error
    for option in ('batch_size', 'window'):
        with pytest.raises(ArgumentError, match=f'{option} must be 1 or more'):
            load_model(finished.out).predict(files, **{option: 0})
    other = listed.rename(tmp_path / 'new.lst')
    assert predict(finished.out, other)['images'] == 3
    listed.write_text(f'{tmp_path}/gone.jpg\n')
    with pytest.raises(SourceError, match='does not exist'):
        predict(finished.out, listed)


def test_config_trains_with_tools_of_mmpretrain(finished, tmp_path):
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'
    if not tool.is_file():
        pytest.skip('this installation of mmpretrain has no tools')
    done = subprocess.run(
        [sys.executable, tool, finished.config, '--work-dir', 'run',
         '--cfg-options', 'train_cfg.max_epochs=1'],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    state, _ = read_checkpoint(tmp_path / 'run/epoch_1.pth')
    load_model(finished.out).model.load_state_dict(state)


def test_onnx_has_the_whole_model(finished, photos, tmp_path, monkeypatch,
                                  capsys):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    assert export_model(finished.out, tmp_path / 'model.onnx') < 1e-4
    model = load_model(finished.out).cpu()
    session = runtime.InferenceSession(str(tmp_path / 'model.onnx'))
    crops = torch.rand(5, 3, 32, 32) * 255
    scores, = session.run(None, {'images': crops.numpy()})
    assert np.abs(scores - model.score(crops)).max() < 1e-4
    # The snippet of the docs needs no torch, and gives the same classes.
    page = (ROOT / 'docs/few-labels.md').read_text()
    snippet = next(block for block in re.findall(
        r'```python\n(.*?)```', page, re.S) if 'onnxruntime' in block)
    assert 'torch' not in snippet
    snippet = snippet.replace('clf.onnx', 'model.onnx').replace(
        'new.jpg', 'new.png')
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(sorted((photos / 'test').rglob('*.JPEG'))):
        image = Image.open(path)
        image.resize((90 - 7 * number, 50 + 3 * number)).save('new.png')
        capsys.readouterr()
        exec(snippet, {})
        name, score = capsys.readouterr().out.rsplit(maxsplit=1)
        found, = model.predict('new.png')
        assert name == found.label
        assert float(score) == pytest.approx(found.score, abs=1e-3)


@needs_torch(2, 6, 'export to ONNX')
def test_commands(photos, encoder, tmp_path):
    """The whole journey by commands, in one process."""
    pytest.importorskip('onnxscript')
    out, table = tmp_path / 'model', tmp_path / 'p.csv'
    done, predicted, exported, hf, wrong = run_commands(
        ['finetune', photos, encoder, '--out', out, '--epochs', 1,
         '--num-workers', 0, '--labels-per-class', 3],
        ['predict', out, photos / 'test', '--out', table],
        ['export', out, tmp_path / 'model.onnx'],
        ['export', out, tmp_path / 'hf', '--to', 'hf'],
        ['finetune', photos, encoder, '--out', out, '--val', 'nothing'])
    assert done[0] == predicted[0] == exported[0] == 0, done[1][-2000:]
    for line in ('task           classify', 'train          9 images of',
                 'recipe         9 labelled', 'time           about',
                 'val            accuracy', 'test           accuracy',
                 f'To predict: cmae predict {out}'):
        assert f'\n{line}' in f'\n{done[1]}', line
    assert len(table.read_text().splitlines()) == 10
    assert 'model.onnx: ONNX Runtime differs' in exported[1]
    assert hf[0] == 0, hf[1][-2000:]
    transformers = pytest.importorskip('transformers')
    theirs = transformers.pipeline(
        'image-classification', str(tmp_path / 'hf'), use_fast=False)
    for image in sorted((photos / 'test').rglob('*.JPEG'))[:2]:
        ours, = load_model(out).predict(image)
        for row in theirs(str(image)):
            assert row['score'] == pytest.approx(
                ours.scores[row['label']], abs=0.01)
    assert wrong[0] == 1 and "has no part 'nothing'" in wrong[1]


def test_same_command_resumes_and_another_is_refused(finished, photos,
                                                     encoder, tmp_path,
                                                     monkeypatch):
    before = (finished.out / 'best.pth').read_bytes()
    again = cmae_mm.finetune(photos, encoder, finished.out, epochs=3,
                             num_workers=0)
    assert again.metrics['val'] == finished.metrics['val']
    assert (finished.out / 'best.pth').read_bytes() == before
    # Also without the checkpoints of the epochs.
    out = shutil.copytree(finished.out, tmp_path / 'out',
                          ignore=shutil.ignore_patterns('epoch_*.pth'))
    for folder in (finished.out, out):
        with pytest.raises(ArgumentError, match='other settings'):
            cmae_mm.finetune(photos, encoder, folder, epochs=4, num_workers=0)
    # A new training that is interrupted leaves no other model in its folder.
    monkeypatch.setattr(ResumableRunner, 'from_cfg', None)
    with pytest.raises(TypeError):
        cmae_mm.finetune(photos, encoder, out, epochs=4, num_workers=0,
                         resume=False)
    assert not (out / 'best.pth').exists()
    assert (out / 'previous_1/best.pth').read_bytes() == before


@pytest.mark.parametrize(('line', 'message'), [
    ('import os', 'not a plain value'),
    ("model = dict(type='os.system')", 'not one of the classes'),
    ('model = dict(head=1)', 'not a config'),
    ('test_dataloader = dict(dataset=dict(pipeline=[]))', 'not a config'),
])
def test_nothing_in_the_folder_is_run(finished, tmp_path, line, message):
    (tmp_path / 'best.pth').write_bytes(finished.checkpoint.read_bytes())
    (tmp_path / 'config.py').write_text(
        f'{finished.config.read_text()}\n{line}\n')
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_windows(finished, photos, tmp_path):
    """Scores of a large image are the mean of its windows as images."""
    files = sorted((photos / 'test').rglob('*.JPEG'))
    tiles = [Image.open(f).convert('RGB').resize((48, 48)) for f in files[:4]]
    large = Image.new('RGB', (80, 80))
    for tile, place in zip(tiles, ((0, 0), (32, 0), (0, 32), (32, 32))):
        large.paste(tile, place)
    corners = [large.crop((x, y, x + 48, y + 48))
               for y in (0, 32) for x in (0, 32)]
    model = load_model(finished.out)
    parts = model.predict(corners)
    found, = model.predict(large, window=48, batch_size=3)
    for name in CLASSES:
        assert found.scores[name] == pytest.approx(
            np.mean([one.scores[name] for one in parts]), abs=1e-6)
    whole, = model.predict(large)
    assert model.predict(large, window=500)[0].scores == pytest.approx(
        whole.scores)
    assert whole.scores != pytest.approx(found.scores)
    large.save(tmp_path / 'large.png')
    done = predict(finished.out, tmp_path / 'large.png', window=48)
    assert done['predictions'][0].scores == pytest.approx(
        found.scores, abs=1e-6)
    # An image above the limit is resized as it is read; windows are read.
    large.resize((96, 96)).save(
        tmp_path / 'a.tif', compression='tiff_lzw', tiffinfo={278: 8})
    expected, = model.predict(tmp_path / 'a.tif')
    in_windows, = model.predict(tmp_path / 'a.tif', window=48)
    model.reader.settings = make_settings(max_pixels=96 * 32)
    made, = model.predict(tmp_path / 'a.tif')
    assert made.scores == pytest.approx(expected.scores, abs=0.05)
    found, = model.predict(tmp_path / 'a.tif', window=48)
    assert found.scores == pytest.approx(in_windows.scores, abs=1e-6)


def test_ranks_write_once(photos, encoder, tmp_path, finished):
    """Two ranks train half of a batch each; the first one writes."""
    out = tmp_path / 'model'
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2',
         f'--master_port={free_port()}', '-m', 'cmae_mm', 'finetune', photos,
         encoder, '--out', out, '--epochs', '2', '--num-workers', '0',
         '--launcher', 'pytorch'],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ('task ', 'time ', 'val +accuracy', 'test +accuracy'):
        assert len(re.findall(f'^{line}', done.stdout, re.M)) == 1, line
    names = {p.name for p in out.iterdir() if p.is_file()}
    assert names >= {'best.pth', 'config.py', 'metrics.json'}
    assert not [n for n in names if n.startswith('best_')]
    cfg = Config.fromfile(out / 'config.py')
    alone = Config.fromfile(finished.config)
    assert 2 * cfg.train_dataloader.batch_size == (
        alone.train_dataloader.batch_size)
    metrics = json.loads((out / 'metrics.json').read_text())
    scalars = next(out.glob('*/vis_data/scalars.json')).read_text()
    best = max(json.loads(line)['accuracy/top1']
               for line in scalars.splitlines() if 'accuracy' in line)
    assert metrics['val']['accuracy'] == pytest.approx(best, abs=1e-4)


def test_report_page(finished, tmp_path):
    pytest.importorskip('plotly')
    from cmae_mm.apis.pictures import report
    report([finished.out], tmp_path / 'report.html')
    page = (tmp_path / 'report.html').read_text()
    accuracy = finished.metrics['test']['accuracy']
    assert 'accuracy, test' in page and f'{accuracy:.2f}' in page
    assert 'val confusion' in page and 'top1' in page
    found = finished.metrics['test']['per_class']['goldfish']
    assert found['f1'] == pytest.approx(
        2 * found['precision'] * found['recall'] / max(
            found['precision'] + found['recall'], 1e-9))
    cells = [f'{found[k]:.1f}' for k in ('precision', 'recall', 'f1')]
    assert '<td>goldfish</td><td class="number">' + (
        '</td><td class="number">'.join(cells)) in page


def test_multilabel(encoder, photos, tmp_path):
    files = sorted((photos / 'Train').rglob('*.JPEG'))
    rows = ['path,label,split']
    for i, file in enumerate(files):
        label = file.parent.name + ('|even' if i % 2 == 0 else '')
        rows.append(f'{file},{label},{"val" if i % 4 < 2 else "train"}')
    (tmp_path / 'list.csv').write_text('\n'.join(rows))
    done = cmae_mm.finetune(tmp_path / 'list.csv', encoder, tmp_path / 'out',
                            task='multilabel', epochs=2, num_workers=0,
                            frozen=True)
    found = done.metrics['val']
    assert found['images'] == 12
    assert set(found['per_class']) == {*CLASSES, 'even'}
    assert 0 < found['mAP'] <= 100
    model = load_model(done.out)
    scalars = next(done.out.glob('*/vis_data/scalars.json')).read_text()
    best = max(json.loads(line)['multi-label/mAP']
               for line in scalars.splitlines() if 'mAP' in line)
    assert found['mAP'] == pytest.approx(best, abs=1e-3)
    one = model.predict(files[0])[0]
    assert one.label == [c for c, s in one.scores.items() if s >= 0.5]
    # Only the head has been trained.
    state, _ = read_checkpoint(done.checkpoint)
    start, _ = read_checkpoint(encoder)
    name = 'layers.1.ffn.layers.1.weight'
    assert torch.equal(state[f'backbone.{name}'], start[f'backbone.{name}'])


def test_multilabel_forms(photos, tmp_path):
    """Separated labels, columns of 0 and 1, and images in no class."""
    files = sorted((photos / 'Train').rglob('*.JPEG'))
    names = [file.parent.name for file in files]
    texts = [f'{n}|even' if i % 2 == 0 else n for i, n in enumerate(names)]
    texts[0] = ''
    rows = '\n'.join(f'{f},{t}' for f, t in zip(files, texts))
    (tmp_path / 'a.csv').write_text(f'path,label\n{rows}\n')
    (tmp_path / 'b.csv').write_text('\ufeff' + '\r\n'.join(
        ['Image;width;Bucket;goldfish;teapot;even;nothing', *(
            f'"{f}";64;' + ';'.join(str(int(c in t.split('|'))) for c in (
                *CLASSES, 'even', 'nothing'))
            for f, t in zip(files, texts))]), 'utf-8')
    (tmp_path / 'c.txt').write_text(
        '\n'.join(f'{f} {t.replace("|", ";")}'.strip()
                  for f, t in reversed(list(zip(files, texts)))))
    first, second, third = (
        read_labelled(tmp_path / name, multilabel=True, seed=1)
        for name in ('a.csv', 'b.csv', 'c.txt'))
    assert first.classes == third.classes == sorted([*CLASSES, 'even'])
    assert second.classes == ['Bucket', 'even', 'goldfish', 'teapot']
    for data in (first, second, third):
        assert 0 < len(data.parts['val'].records) < 10
        found = {record['img_path']: sorted(names).__str__().lower()
                 for part in data.parts.values()
                 for record, names in zip(part.records, part.labels)}
        assert found == {str(f): str(sorted(filter(None, t.split('|'))))
                         for f, t in zip(files, texts)}
        assert '1 images have no label and count as negatives' in data.notes
        assert 'no image has several labels' not in str(data.notes)
    (tmp_path / 'd.csv').write_text('path,label\n' + '\n'.join(
        f'{f},"{n}, {n[0]}"' for f, n in zip(files, names)))
    assert "| or ;, if 'bucket, b' is more than one" in str(
        read_labelled(tmp_path / 'd.csv', multilabel=True).notes)
    assert any('not 0 and 1: width, nothing' in n for n in second.notes)
    few = read_labelled(tmp_path / 'a.csv', True, labels_per_class=1)
    assert [] in few.parts['train'].labels or [] in few.parts['val'].labels
    with pytest.raises(ArgumentError, match='a.csv has images of several'):
        read_labelled(tmp_path / 'a.csv')


def test_augmentation_of_many_images(encoder, photos, tmp_path, monkeypatch):
    """RandAugment, erasing, mixup and CutMix, which few images do not get."""
    def choose(*args, **kwargs):
        return choose_recipe(*args, **kwargs)._replace(
            augment=True, mixup=True, drop_path=0.1)

    monkeypatch.setattr('cmae_mm.finetuning.recipe.choose_recipe', choose)
    done = cmae_mm.finetune(photos, encoder, tmp_path, epochs=1,
                            num_workers=0)
    cfg = Config.fromfile(done.config)
    assert len(cfg.model.train_cfg.augments) == 2
    assert 'RandAugment' in [
        t.type for t in cfg.train_dataloader.dataset.pipeline]
    assert load_model(done.out).predict(photos / 'test')


def write_list(path, photos, label=lambda f: f.parent.name, split=False):
    files = sorted(photos.rglob('*.JPEG'))
    text = 'path,label' + ',subset' * split + '\n'
    for file in files:
        text += f'{file},{label(file)}'
        text += f',{file.parents[1].name}\n' if split else '\n'
    path.write_text(text)
    return path


def test_forms_of_data(photos, tmp_path):
    """Folders, lists and stores give the same parts."""
    def counts(found):
        return {k: len(p.records) for k, p in found.parts.items()}

    wanted = dict(train=24, val=12, test=9)
    assert counts(read_labelled(photos)) == wanted
    listed = write_list(tmp_path / 'list.csv', photos, split=True)
    assert counts(read_labelled(listed)) == wanted
    assert read_labelled(listed).classes == CLASSES
    # One folder of classes, and a list without splits: a part is drawn.
    found = read_labelled(photos / 'Train')
    assert counts(found) == dict(train=18, val=6)
    assert found.parts['val'].counts(CLASSES) == dict.fromkeys(CLASSES, 2)
    assert 'drawn with seed 0' in found.parts['val'].place
    other = read_labelled(photos / 'Train', seed=1)
    assert other.parts['val'].records != found.parts['val'].records
    plain = write_list(tmp_path / 'plain.csv', photos / 'Train')
    assert counts(read_labelled(plain)) == dict(train=18, val=6)
    # Another part, and a folder elsewhere, by name.
    assert counts(read_labelled(photos, val='test')) == dict(train=24, val=9)
    assert counts(read_labelled(
        photos / 'Train', val=str(photos / 'test'))) == dict(train=24, val=9)
    few = read_labelled(photos, labels_per_class=2, seed=3)
    assert few.parts['train'].counts(CLASSES) == dict.fromkeys(CLASSES, 2)
    assert counts(few)['val'] == 12
    # Whole numbers are classes, too, in the order of their values.
    numbers = write_list(tmp_path / 'numbers.csv', photos / 'Train',
                         lambda f: (2, 10, 1)[CLASSES.index(f.parent.name)])
    assert read_labelled(numbers).classes == ['1', '2', '10']
    padded = write_list(tmp_path / 'padded.csv', photos / 'Train', lambda f: (
        '01', '1', '10')[CLASSES.index(f.parent.name)])
    assert read_labelled(padded).classes == ['01', '1', '10']


def test_store_gives_the_same_records(photos, tmp_path):
    pytest.importorskip('lmdb')
    from cmae_mm.datasets.pack import pack_images
    pack_images(photos / 'Train', tmp_path / 'store')
    found = read_labelled(tmp_path / 'store')
    assert len(found.parts['train'].records) == 18
    assert 'img_key' in found.parts['train'].records[0]


def _one_class(folder):
    for part in folder.iterdir():
        for name in CLASSES[1:]:
            (part / name).rename(folder.parent / f'{part.name}{name}')


def _empty_in(part):
    def empty(folder):
        for file in (folder / part / 'teapot').iterdir():
            file.unlink()
    return empty


def _other_class(folder):
    (folder / 'val/teapot').rename(folder / 'val/kettle')


def _unreadable(folder):
    for file in (folder / 'train/bucket').iterdir():
        file.write_bytes(b'nothing')


def _no_classes(folder):
    for file in folder.rglob('*.JPEG'):
        file.rename(folder / file.name)
    for part in ('train', 'val'):
        for name in CLASSES:
            (folder / part / name).rmdir()
        (folder / part).rmdir()


def _grey_16_bit(folder):
    for file in folder.rglob('*.JPEG'):
        file.unlink()
        values = np.linspace(0, 65535, 1600, dtype=np.uint16)
        Image.fromarray(values.reshape(40, 40)).save(file.with_suffix('.png'))


@pytest.mark.parametrize(('change', 'options', 'message'), [
    (_one_class, {}, "has one class, .'bucket'"),
    (_empty_in('train'), {}, "train has no images of the class 'teapot'"),
    (_empty_in('val'), {}, "val has no images of the class 'teapot'"),
    (_other_class, {}, "'kettle' in .*val and not in the training data"),
    (_unreadable, {}, '4 of 12 images of .* cannot be read, more than'),
    (_no_classes, {}, 'no labelled images'),
    (_grey_16_bit, {}, 'takes 3 channel.s. of uint8'),
    (None, dict(labels_per_class=5), "4 images of the class 'bucket', fewer"),
    (None, dict(val='dev'), "no part 'dev'"),
    (None, dict(task='multilabel'), 'multi-label data must be a list'),
    (None, dict(task='classfy'), 'did you mean'),
])
def test_mistakes_are_found_before_the_first_step(
        encoder, tmp_path, change, options, message):
    folder = make_photos(tmp_path / 'photos', dict(train=4, val=2))
    if change:
        change(folder)
    with pytest.raises(ArgumentError, match=message) as caught:
        cmae_mm.finetune(folder, encoder, tmp_path / 'out', **options)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out/best.pth').exists()


def test_mistakes_of_lists_and_copies(photos, tmp_path):
    files = [*(photos / 'Train').rglob('*.JPEG')]
    rows = [f'{f},{f.parent.name}' for f in files]

    def read(lines, header='path,label'):
        (tmp_path / 'list.csv').write_text('\n'.join([header, *lines]))
        return read_labelled(tmp_path / 'list.csv')

    assert any('2 repeated rows are' in n for n in read(rows + rows[:2]).notes)
    for lines, header, match in (
            ([*rows, f'{files[0]},other'], 'path,label', 'two labels'),
            ([*rows, f'{tmp_path}/x.jpg,a|b'], 'path,label', 'not exist'),
            ([*rows[1:], f'{rows[0]}|b'], 'path,label', 'task multilabel'),
            ([f'{r},fit' for r in rows], 'path,label,split', 'but of fit')):
        with pytest.raises(ArgumentError, match=match) as caught:
            read(lines, header)
        assert '\n' not in str(caught.value)
    splits = ['train', 'val', 'train', 'fold 3']
    found = read([f'{r},{splits[i % 4]}' for i, r in enumerate(rows)],
                 'path,label,split')
    assert any(f'6 rows with another split are skipped, the first: '
               f'{files[3]}' in n for n in found.notes)
    (tmp_path / 'list.csv').write_text('\n'.join(
        [f'path,{",".join(CLASSES)}', *(
            f'{f},{",".join(str(int(c == f.parent.name)) for c in CLASSES)}'
            for f in files)]))
    assert read_labelled(tmp_path / 'list.csv', True).classes == CLASSES
    text = (tmp_path / 'list.csv').read_text()
    for wrong, match in ((text.replace(',0', ',nan', 1), 'line 2: the column '
                          "'.*' has 'nan'; expected 0 or 1"),
                         (text.replace(',1', ',3').replace(',0', ',4'),
                          'neither a column label nor columns of 0 and 1')):
        (tmp_path / 'list.csv').write_text(wrong)
        with pytest.raises(ArgumentError, match=match):
            read_labelled(tmp_path / 'list.csv', True)
    folder = make_photos(tmp_path / 'copied', dict(train=3, val=2))
    (folder / 'val/teapot/copy.JPEG').write_bytes(
        next((folder / 'train/teapot').iterdir()).read_bytes())
    assert '1 images are copies' in '; '.join(read_labelled(folder).notes)
    (folder / 'dense').mkdir()
    (folder / 'train/teapot').rename(folder / 'dense/images')
    (folder / 'train/bucket').rename(folder / 'dense/Masks')
    with pytest.raises(ArgumentError, match='--task segment'):
        read_labelled(folder / 'dense')


def test_an_image_that_is_removed_during_training_is_not_scored(
        finished, photos, tmp_path, capsys):
    data = read_labelled(shutil.copytree(photos, tmp_path / 'photos'))
    gone = Path(data.parts['val'].records[0]['img_path'])
    gone.unlink()
    found = load_model(finished.out).report(data, tmp_path, {})['val']
    assert found['images'] == np.sum(found['confusion']) == 11
    assert np.sum(found['confusion'], 1).tolist() == [3, 4, 4]
    shown = capsys.readouterr().out
    assert f'skipped: {gone}: No such file' in shown
    assert '1 images could not be read' in shown


def test_unreadable_file_is_named_and_left_out(tmp_path):
    folder = make_photos(tmp_path, dict(train=5, val=2))
    broken = sorted((folder / 'train/bucket').iterdir())[0]
    broken.write_bytes(b'nothing')
    found = read_labelled(folder)
    assert len(found.parts['train'].records) == 14
    assert list(found.unreadable) == [str(broken)]
    assert str(broken) in found.describe()[-1]


def test_test_part_without_labels_is_skipped(tmp_path):
    folder = make_photos(tmp_path, dict(train=3, val=2, test=1))
    for file in [*(folder / 'test').rglob('*.JPEG')]:
        file.rename(folder / 'test' / f'{file.parent.name}.JPEG')
    found = read_labelled(folder)
    assert list(found.parts) == ['train', 'val']
    assert any('the test part is skipped: no labelled images' in note
               for note in found.notes)


def test_two_classes_are_enough(tmp_path):
    folder = make_photos(tmp_path, dict(train=2, val=1))
    for part in folder.iterdir():
        for file in (part / 'teapot').iterdir():
            file.unlink()
        (part / 'teapot').rmdir()
    assert read_labelled(folder).classes == CLASSES[:2]


@pytest.mark.parametrize('images', [3, 50, 600, 5_000, 100_000])
def test_recipe_follows_the_number_of_images(images):
    small = choose_recipe(images, width=128, depth=4)
    large = choose_recipe(images, width=768, depth=12)
    assert not small.mixup and not small.augment
    assert large.augment == (images >= 1_000)
    assert large.mixup == (images >= 10_000)
    assert 20 <= large.epochs <= 100
    assert large.batch_size <= images
    frozen = choose_recipe(images, 768, 12, frozen=True, epochs=7)
    assert frozen.epochs == 7 and not frozen.mixup
