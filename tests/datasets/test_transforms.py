import logging
from pathlib import Path

import numpy as np
import pytest
from helpers import write_images
from hypothesis import given, settings
from hypothesis import strategies as st

from cmae_mm.datasets import LoadImageOrSkip, PixelShift, PretrainingDataset


def canvas(height, width=None):
    rng = np.random.default_rng(0)
    return rng.integers(
        0, 256, (height, width or height, 3), dtype=np.uint8)


@given(
    size=st.one_of(st.integers(1, 20),
                   st.tuples(st.integers(1, 20), st.integers(1, 20))),
    max_shift=st.integers(0, 8),
    extra=st.integers(0, 5),
    seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_windows_are_slices_of_the_canvas(size, max_shift, extra, seed):
    np.random.seed(seed)
    h, w = size if isinstance(size, tuple) else (size, size)
    image = canvas(h + max_shift + extra, w + max_shift)
    result = PixelShift(size=size, max_shift=max_shift)(dict(img=image))
    online, target = result['img']
    y, x = result['shift']
    assert 0 <= y < max(max_shift, 1) and 0 <= x < max(max_shift, 1)
    assert (online == image[0:h, 0:w]).all()
    assert (target == image[y:y + h, x:x + w]).all()
    assert target.shape == online.shape == (h, w, 3)
    assert result['img_shape'] == (h, w)


def test_shifts_are_uniform_and_independent():
    transform = PixelShift(size=4, max_shift=4)
    shifts = np.array([transform.draw_shift() for _ in range(4000)])
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(shifts.T), 1)
    expected = 4000 / 16
    chi2 = ((counts - expected)**2 / expected).sum()
    assert chi2 < 37.7  # the 0.1 % quantile of 15 degrees of freedom


def test_only_the_target_is_augmented():
    image = canvas(12)
    transform = PixelShift(
        size=8,
        max_shift=4,
        target_pipeline=[dict(type='RandomGrayscale', prob=1.,
                              keep_channels=True)])
    result = transform(dict(img=image.copy()))
    online, target = result['img']
    assert (online == image[:8, :8]).all()
    assert (target[..., 0] == target[..., 1]).all()


def test_the_online_view_is_augmented_where_that_is_asked_for():
    image = canvas(20, 20)
    kept = image.copy()
    grey = dict(type='RandomGrayscale', prob=1., keep_channels=True)
    online, target = PixelShift(
        size=8, max_shift=4, online_pipeline=[grey])(dict(img=image))['img']
    assert (online[..., 0] == online[..., 1]).all()
    assert (target[..., 0] != target[..., 1]).any()
    assert (image == kept).all()


@pytest.mark.parametrize('kwargs, named', [
    (dict(size=224, max_shift=32, canvas_size=255),
     'canvas of 255 pixels .* must be 256'),
    (dict(size=(64, 128), max_shift=8, canvas_size=(72, 130)),
     'canvas of 72x130 .* size=64x128 .* must be 72x136'),
    (dict(size=[64]), r'size must be .* or \(height, width\), but got \[64\]'),
    (dict(size=0), 'size must be .* got 0'),
    (dict(size=8, max_shift=-1), 'max_shift must be .* got -1'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        PixelShift(**kwargs)


def test_too_small_canvas_raises():
    with pytest.raises(ValueError, match='canvas of 20x11 pixels'):
        PixelShift(size=8, max_shift=4)(dict(img=canvas(20, 11)))


@pytest.fixture
def broken_folder(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.jpg').write_text('not an image')
    return tmp_path


def test_broken_files_are_skipped_and_named(broken_folder, monkeypatch):
    said = []
    monkeypatch.setattr(
        'cmae_mm.datasets.transforms.print_log',
        lambda text, level, **kwargs: said.append((level, text)))
    dataset = PretrainingDataset(
        data_root=str(broken_folder),
        pipeline=[dict(type='LoadImageOrSkip')])
    assert len(dataset) == 5
    loaded = [dataset[i] for i in range(5)]
    # every place is filled, and only by images that can be read
    assert {Path(r['img_path']).name for r in loaded} <= {
        '000.jpg', '001.jpg', '002.jpg'
    }
    for name in ('empty.jpg', 'text.jpg'):
        assert any(name in text and level == logging.WARNING
                   for level, text in said)


def test_a_hundred_broken_files_in_a_row_are_an_error(tmp_path):
    (tmp_path / 'text.jpg').write_text('not an image')
    dataset = PretrainingDataset(
        data_root=str(tmp_path), pipeline=[dict(type='LoadImageOrSkip')])
    with pytest.raises(RuntimeError, match='100 images in a row .*text.jpg'):
        dataset[0]


def test_a_good_file_resets_the_count(broken_folder):
    transform = LoadImageOrSkip(max_failures=2)
    good = dict(img_path=str(broken_folder / '000.jpg'))
    bad = dict(img_path=str(broken_folder / 'text.jpg'))
    for _ in range(3):
        assert transform(dict(good)) is not None
        assert transform(dict(bad)) is None
    with pytest.raises(RuntimeError, match='2 images in a row'):
        transform(dict(bad))


def test_empty_folders_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match='missing.*DATA_ROOT'):
        PretrainingDataset(data_root=str(tmp_path / 'missing'))
    with pytest.raises(ValueError, match='no images below '):
        PretrainingDataset(data_root=str(tmp_path))


def test_layouts(image_root, tmp_path):
    assert len(PretrainingDataset(data_root=str(image_root))) == 24
    labelled = PretrainingDataset(data_root=str(image_root), with_label=True)
    assert labelled.CLASSES == ('class0', 'class1')
    write_images(tmp_path, 3)
    assert len(PretrainingDataset(data_root=str(tmp_path))) == 3
