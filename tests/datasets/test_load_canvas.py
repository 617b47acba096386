"""Crops and canvases, beside torchvision and Pillow."""
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from cmae_mm.datasets import LoadCanvas
from cmae_mm.datasets.decoding import decode_image


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
