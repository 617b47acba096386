"""Crops and canvases, compared with torchvision and Pillow."""
import math

import numpy as np
import pytest
import torch
from helpers import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from cmae_mm.datasets import LoadCanvas, PretrainingDataset
from cmae_mm.datasets.decode import decode_image


def test_crops_are_torchvisions():
    """The same distribution of area, shape and place."""
    ours, theirs = [], []
    transform = LoadCanvas(32)
    rng = np.random.default_rng(0)
    image = torch.zeros(3, 90, 160)
    for _ in range(3000):
        ours.append(transform.draw_crop(90, 160, rng))
        theirs.append(
            RandomResizedCrop.get_params(image, (0.2, 1.), (3 / 4, 4 / 3)))
    for a, b in zip(np.array(ours).T, np.array(theirs).T):
        assert abs(a.mean() - b.mean()) < 5 * (
            (a.var() + b.var()) / 3000)**.5
        assert a.std() == pytest.approx(b.std(), rel=0.1)


@pytest.mark.parametrize('shape', [(1, 1), (1, 300), (400, 3), (2, 2)])
def test_crops_of_odd_images(shape):
    transform = LoadCanvas(16)
    for seed in range(20):
        y, x, h, w = transform.draw_crop(*shape, np.random.default_rng(seed))
        assert 0 < h <= shape[0] - y and 0 < w <= shape[1] - x


def test_canvas_is_as_sharp_as_pillows_bicubic(tmp_path):
    """The same crops, resized by Pillow: pixels, and energy of gradients."""
    from helpers import SHARED
    folder = SHARED / 'data/imagenet_samples'
    if not folder.exists():
        pytest.skip(f'{folder} is not here')
    transform = LoadCanvas(256, flip_prob=0)
    shrunk, energies = [], []
    for seed, path in enumerate(sorted(folder.iterdir())[:160:2]):
        made = transform(dict(img_path=str(path), view_seed=seed))['img']
        image = Image.fromarray(
            decode_image(path.read_bytes(), transform._shrink_to))
        y, x, h, w = transform.draw_crop(image.height, image.width,
                                         np.random.default_rng(seed))
        expected = np.asarray(
            image.crop((x, y, x + w, y + h)).resize(
                (256, 256), Image.Resampling.BICUBIC)).astype(float)
        made = made.astype(float)
        psnr = 10 * np.log10(255**2 / ((made - expected)**2).mean())
        assert psnr > 45, path
        shrunk.append(max(h, w) > 256)
        energies.append([
            sum((np.diff(view, axis=axis)**2).mean() for axis in (0, 1))
            for view in (made, expected)
        ])
    made, expected = np.array(energies).T
    # Enlarged and shrunk, neither softer nor harder than Pillow's.
    for chosen in (np.array(shrunk), ~np.array(shrunk)):
        assert chosen.sum() > 10
        ratios = made[chosen] / expected[chosen]
        assert abs(ratios - 1).max() < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.floats(3.1, 40), st.booleans(),
       st.floats(0.05, 1))
def test_crops_cover_a_whole_strip(short, aspect, upright, low):
    """Each tenth of it is drawn, as often as any other but for the ends."""
    long = math.ceil(short * aspect)
    shape = (long, short) if upright else (short, long)
    transform = LoadCanvas(16, crop_ratio_range=(low, 1))
    rng = np.random.default_rng(0)
    seen, places = np.zeros(long), []
    for _ in range(400):
        y, x, h, w = transform.draw_crop(*shape, rng)
        assert 0 < h <= shape[0] - y and 0 < w <= shape[1] - x
        assert max(h, w) <= max(1.4 * short, 2)  # of a usual shape
        start, length = (y, h) if upright else (x, w)
        seen[start:start + length] += 1
        places.append((start + rng.random()) / (long - length + 1))
    assert all(tenth.any() for tenth in np.array_split(seen, 10) if tenth.size)
    # Uniform from one end to the other.
    assert abs(np.mean(places) - 0.5) < 0.08
    assert min(places) < 0.05 and max(places) > 0.95


def test_strips_are_long_ones_alone(monkeypatch):
    """Up to an aspect of 3 crops are torchvision's: the same draws."""
    def crops():
        return [LoadCanvas(16).draw_crop(*shape, np.random.default_rng(seed))
                for shape in ((30, 90), (90, 30), (64, 64), (10, 29),
                              (30, 400)) for seed in range(50)]
    ours = crops()
    monkeypatch.setattr(
        'cmae_mm.datasets.transforms._STRIP_ASPECT', 1e9)
    before = crops()
    assert ours[:200] == before[:200]
    assert len(set(before[200:])) == 1 and len(set(ours[200:])) > 40


def test_small_images_are_enlarged_and_counted(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.transforms.print_log',
                        lambda text, **kwargs: said.append(text))
    write_images(tmp_path, 6, size=20)
    write_images(tmp_path / 'large', 3, size=48)
    dataset = PretrainingDataset(
        data_root=str(tmp_path), pipeline=[dict(type='LoadCanvas', size=32)])
    transform = dataset.pipeline.transforms[0]
    assert dataset[0]['img'].shape == (32, 32, 3)
    assert transform.enlarged == 1
    assert len(said) == 1 and '.jpg, 20x20 pixels, is smaller than the ' in (
        said[0])
    for _ in DataLoader(dataset, 3, num_workers=2,
                        collate_fn=lambda samples: len(samples)):
        pass
    assert transform.enlarged == 7 and len(said) == 1


@pytest.mark.parametrize('size, image', [
    ((16, 64), (30, 120)), ((64, 16), (300, 100)), ((32, 128), (60, 900))])
def test_crops_have_the_aspect_of_the_canvas(size, image):
    """Those of a square, of an image stretched by the canvas's aspect."""
    aspect = size[1] / size[0]
    transform = LoadCanvas(size, crop_ratio_range=(0.3, 1))
    square = LoadCanvas(64, crop_ratio_range=(0.3, 1))
    ours, theirs = [], []
    for seed in range(400):
        y, x, h, w = transform.draw_crop(*image, np.random.default_rng(seed))
        assert 0 < h <= image[0] - y and 0 < w <= image[1] - x
        ours.append((h * w, w / h / aspect))
        # 10,000 times the height and width, one of them by the aspect
        long = round(1e4 * image[0] * aspect), round(1e4 * image[1])
        y, x, h, w = square.draw_crop(*long, np.random.default_rng(seed))
        theirs.append((h * w / aspect / 1e8, w / h))
    assert 0.7 < min(r for _, r in ours) < 0.8 < 1.25 < max(
        r for _, r in ours) < 1.4
    # the same draws, but for whole pixels, which may just not fit
    assert np.isclose(ours, theirs, rtol=0.08).all(axis=1).mean() > 0.95


def test_a_canvas_of_a_rectangle(tmp_path, monkeypatch):
    write_images(tmp_path, 1, size=48)
    transform = LoadCanvas((20, 60), flip_prob=0.)
    made = transform(dict(img_path=str(tmp_path / '000.jpg')))
    assert made['img'].shape == (20, 60, 3) and made['img_shape'] == (20, 60)
    assert transform.enlarged == 1  # too narrow, though high enough
    assert 'size=(20, 60)' in repr(transform)
    # a JPEG file is shrunk when decoded as long as there is enough of it
    assert LoadCanvas((20, 60), crop_ratio_range=(0.25, 1))._shrink_to == 120


@pytest.mark.parametrize('given, said', [
    (dict(size=0), 'size must be a whole number of pixels.* but got 0'),
    (dict(size=(16, 16.5)), 'size must be a whole number'),
    (dict(crop_ratio_range=(0, 1)), 'crop_ratio_range must be two numbers'),
    (dict(crop_ratio_range=(0.5, 1.5)), 'crop_ratio_range must be 2 numbers '
     'from 0 to 1, but got .0.5, 1.5.'),
    (dict(crop_ratio_range=(0.9, 0.2)), 'the lower one first'),
    (dict(crop_ratio_range=0.5), 'crop_ratio_range must be 2 numbers'),
    (dict(aspect_ratio_range=(-1, 2)), 'aspect_ratio_range must be 2 numbers'),
    (dict(aspect_ratio_range=(1, 2, 3)), 'aspect_ratio_range must be 2'),
    (dict(flip_prob=-1), 'flip_prob must be between 0 and 1, but got -1'),
    (dict(flip_prob='half'), 'flip_prob must be between'),
])
def test_wrong_arguments_are_named(given, said):
    with pytest.raises(ValueError, match=said):
        LoadCanvas(**{'size': 16, **given})
