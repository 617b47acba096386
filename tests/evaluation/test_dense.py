"""Segmentation by frozen patch features."""
import shutil

import numpy as np
import pytest
import torch
from helpers import model_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from cmae_mm.cli.main import parse, run_command
from cmae_mm.datasets.source import open_source
from cmae_mm.evaluation import dense
from cmae_mm.evaluation.data import EvaluationDataError
from cmae_mm.evaluation.dense import (IGNORED, classes_of, confusions,
                                      dense_score, mean_iou, pair_files,
                                      patch_labels, read_map, read_maps)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4),
       st.integers(1, 5))
def test_a_patch_has_the_class_of_most_of_its_pixels(seed, grid, patch,
                                                     classes):
    rng = np.random.default_rng(seed)
    maps = rng.integers(-1, classes, (2, grid * patch, grid * patch))
    found = patch_labels(torch.from_numpy(maps), patch)
    for n in range(2):
        for place in range(grid * grid):
            i, j = place // grid * patch, place % grid * patch
            own = [v for v in maps[n, i:i + patch, j:j + patch].ravel()
                   if v != IGNORED]
            counts = [own.count(c) for c in range(classes)]
            expected = counts.index(max(counts)) if own else IGNORED
            assert found[n, place] == expected


@pytest.mark.parametrize('seed', range(3))
def test_scores_are_scikit_learns(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-1, 4, (5, 12, 12), generator=generator)
    maps[maps == 3] = 0  # a class that is predicted and never there
    predicted = torch.randint(0, 4, (5, 9), generator=generator)
    counted = confusions(predicted, maps, 4)
    pixels = np.kron(predicted.view(5, 3, 3).numpy(), np.ones((1, 4, 4), int))
    known = maps.numpy() != IGNORED
    true, found = maps.numpy()[known], pixels[known]
    np.testing.assert_array_equal(
        counted.sum(0), confusion_matrix(true, found, labels=range(4)))
    expected = jaccard_score(true, found, labels=[0, 1, 2], average='macro')
    assert mean_iou(counted.sum(0)) == pytest.approx(expected)
    score = dense_score(counted)
    assert score.miou == pytest.approx(100 * expected)
    assert score.pixel_accuracy == pytest.approx(100 * (true == found).mean())
    assert score.interval[0] < score.miou < score.interval[1]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Images of which the left part is red and the right one blue."""
    root = tmp_path_factory.mktemp('dense')
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 5)):
        for kind in ('images', 'maps'):
            (root / kind / split).mkdir(parents=True)
        for n in range(count):
            border = rng.integers(20, 60)
            image = rng.integers(0, 60, (64, 80, 3)).astype(np.uint8)
            image[:, :border, 0] += 150
            image[:, border:, 2] += 150
            values = np.full((64, 80), 7, np.uint8)
            values[:, border:] = 200
            values[:8] = 0  # not labelled
            Image.fromarray(image).save(root / f'images/{split}/{n}.jpg')
            Image.fromarray(values).save(root / f'maps/{split}/{n}.png')
    Config(dict(
        model=model_cfg(), default_scope='mmpretrain', data_preprocessor=dict(
            type='TwoViewDataPreprocessor', size=32, max_shift=4,
            mean=[120.] * 3, std=[60.] * 3, to_rgb=True),
        custom_imports=dict(imports=['cmae_mm']), work_dir=str(root / 'work')
    )).dump(root / 'cfg.py')
    return root


@pytest.mark.parametrize('command, more', [
    ('dense-knn', ['--ks', '3', '10']), ('dense-linear', ['--lrs', '0.1']),
    ('dense-knn', ['--img-size', '48', '--ks', '5']),
    ('dense-knn', ['--layer', '1', '2'])])
def test_colours_are_found_even_by_random_weights(command, more, data):
    result = run_command(parse([
        command, str(data), 'random', '--config', str(data / 'cfg.py'),
        '--work-dir', str(data / 'out'), *more]))
    # What is lost are the patches that the border crosses.
    assert result['miou'] > 80 and result['pixel_accuracy'] > 90
    assert result['interval'][0] <= result['miou'] <= result['interval'][1]
    lines = (data / 'out/evaluations.jsonl').read_text().splitlines()
    assert f'"kind": "{command}"' in lines[-1]
    assert ('"layer": [1, 2]' in lines[-1]) == ('--layer' in more)


def test_unreadable_images_are_skipped(data, tmp_path, capsys):
    root = shutil.copytree(data, tmp_path / 'data')
    for kind in ('images', 'maps'):
        for split in ('train', 'val'):
            folder = root / kind / split
            for file in sorted(folder.iterdir()):
                for n in range(2):
                    shutil.copy(file, folder / f'{n}_{file.name}')

    def evaluate():
        return run_command(parse([
            'dense-knn', str(root), 'random', '--config',
            str(root / 'cfg.py'), '--work-dir', str(tmp_path)]))

    broken = sorted((root / 'images').glob('*/0_0.jpg'))
    for file in broken:
        file.write_text('no image')
    found = evaluate()
    shown = capsys.readouterr().out
    assert f'skipped: {broken[0]} cannot be decoded' in shown
    assert '23 training and 14 validation images' in shown
    for file in broken:
        file.unlink()
    assert evaluate() == found
    for file in (root / 'images/val').glob('0_*'):
        file.write_text('no image')
    with pytest.raises(EvaluationDataError, match='4 of 14 images of .*val'):
        evaluate()


def test_classes_are_those_of_the_most_pixels(data, tmp_path):
    for folder in ('images', 'maps'):
        (tmp_path / folder).mkdir()
    values = np.repeat([[3, 3, 3, 9, 9, 5, 0, 0, 0, 0]], 10, 0)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / 'maps/a.png')
    Image.new('RGB', (10, 10)).save(tmp_path / 'images/a.jpg')
    pairs = pair_files(*map(open_source, (tmp_path / 'images',
                                          tmp_path / 'maps')))
    assert classes_of(pairs, 10, [0]) == {3: 0, 5: 1, 9: 2}
    assert classes_of(pairs, 10, [0], 2) == {3: 0, 9: 1}
    with pytest.raises(EvaluationDataError, match='1 class'):
        classes_of(pairs, 10, [0, 3, 9])
    with pytest.raises(EvaluationDataError, match='no pixel of the maps'):
        read_maps(pairs, 10, {7: 0, 200: 1})


def test_files_that_do_not_fit_are_named(data, tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / 'other.png')
    images, other = map(open_source, (data / 'images/train', tmp_path))
    with pytest.raises(EvaluationDataError, match='8 of 8 images have no mas'):
        pair_files(images, other)
    shutil.copy(tmp_path / 'other.png', tmp_path / 'other.bmp')
    with pytest.raises(EvaluationDataError, match='several masks with the sa'):
        pair_files(images, open_source(tmp_path))
    with pytest.raises(EvaluationDataError, match='one integer per pixel'):
        read_map(data / 'images/train/0.jpg', 8)


def test_too_many_neighbours_are_refused_before_features(data, monkeypatch):
    monkeypatch.setattr(dense, 'extract_dense', None)
    with pytest.raises(EvaluationDataError, match='k=1000 or more .* are 4'):
        run_command(parse(['dense-knn', str(data), 'random', '--config',
                           str(data / 'cfg.py'), '--ks', '1000', '2000']))
