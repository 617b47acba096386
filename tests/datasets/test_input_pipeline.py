"""The fast input path: canvases from workers, views on the device."""
import io
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from helpers import ROOT, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import Runner
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from cmae_mm.datasets import LoadCanvas, PixelShift, PretrainingDataset
from cmae_mm.datasets.decoding import UndecodableImage, decode_image
from cmae_mm.engine.hooks.prefetch_hook import DevicePrefetcher
from cmae_mm.models import TwoViewDataPreprocessor


def preprocessor(**kwargs):
    options = dict(
        size=24,
        max_shift=8,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True)
    return TwoViewDataPreprocessor(**dict(options, **kwargs))


def photo(size=32, seed=0):
    """A smooth RGB image with all sorts of colours, (S, S, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size)))


def to_batch(*images):
    return torch.stack(
        [torch.from_numpy(i.copy()).permute(2, 0, 1) for i in images])


def still(module, count):
    """Parameters that change nothing."""
    params = module.draw_params(count)
    off = torch.zeros(count, dtype=torch.bool)
    return params._replace(jitter=off, grey=off, blur=off)


def as_image(view):
    return (view * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@given(seed=st.integers(0, 999), max_shift=st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_windows_are_pixel_shifts(seed, max_shift):
    """Identical windows for identical offsets, on both paths."""
    module = preprocessor(max_shift=max_shift)
    images = [photo(seed=s) for s in (1, 2, 3)]
    params = still(module, 3)._replace(
        shift=module.draw_params(3, [seed] * 3).shift)
    online, target = module.make_views(to_batch(*images), params)
    for n, image in enumerate(images):
        transform = PixelShift(size=24, max_shift=max_shift)
        transform.draw_shift = lambda n=n: tuple(params.shift[n].tolist())
        expected = transform(dict(img=image))['img']
        assert (as_image(online[n]) == expected[0]).all()
        assert (as_image(target[n]) == expected[1]).all()


MMCV = (mmcv.adjust_brightness, mmcv.adjust_contrast,
        lambda img, f, backend: mmcv.adjust_color(img, f, backend=backend),
        mmcv.adjust_hue)


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
@pytest.mark.parametrize('only', [0, 1, 2, 3, None])
def test_jitter_is_mmcvs_within_rounding(order, only):
    module = preprocessor(size=32, max_shift=0)
    factors = torch.tensor([[1.3, 0.7, 1.4, 0.07], [0.65, 1.35, 0.6, -0.1]])
    if only is not None:
        neutral = torch.tensor([1., 1., 1., 0.])
        neutral = neutral.expand(2, -1).clone()
        neutral[:, only] = factors[:, only]
        factors = neutral
    images = [photo(seed=4), photo(seed=5)]
    params = still(module, 2)._replace(
        jitter=torch.ones(2, dtype=torch.bool),
        order=torch.tensor([order, order]),
        factors=factors)
    _, target = module.make_views(to_batch(*images), params)
    for n, image in enumerate(images):
        image = image[..., ::-1]  # mmcv works on BGR
        for op in order:
            if only is None or op == only:
                image = MMCV[op](
                    image, float(factors[n, op]), backend='pillow')
        image = image[..., ::-1]
        difference = np.abs(
            as_image(target[n]).astype(int) - image.astype(int))
        # Pillow rounds to whole levels after each step, hue to 256 turns.
        assert difference.max() <= (1 if only in (0, 2) else 16)
        assert difference.mean() < (1 if only in (0, 1, 2) else 3)


def test_grey_and_blur_are_pillows_within_rounding():
    module = preprocessor(size=32, max_shift=0)
    images = [photo(seed=s) for s in range(4)]
    on, off = torch.tensor(True), torch.tensor(False)
    params = still(module, 4)._replace(
        grey=torch.stack([on, off, off, off]),
        blur=torch.stack([off, on, on, off]),
        sigma=torch.tensor([9., 0.5, 1.7, 9.]))
    _, target = module.make_views(to_batch(*images), params)
    views = [as_image(t).astype(int) for t in target]
    grey = np.asarray(Image.fromarray(images[0]).convert('L')).astype(int)
    assert np.abs(views[0] - grey[..., None]).max() <= 1
    for n, sigma in ((1, 0.5), (2, 1.7)):
        blurred = Image.fromarray(images[n]).filter(
            ImageFilter.GaussianBlur(sigma))
        difference = np.abs(views[n] - np.asarray(blurred).astype(int))
        # Pillow approximates the Gaussian by boxes.
        assert difference.max() <= 6 and difference.mean() < 1
        assert np.abs(views[n] - images[n].astype(int)).max() > 0
    assert (views[3] == images[3]).all()


def test_parameters_have_the_recipes_distributions():
    module = preprocessor()
    p = module.draw_params(20000)
    for share, expected in ((p.jitter, 0.8), (p.grey, 0.2), (p.blur, 0.5)):
        error = (expected * (1 - expected) / 20000)**.5
        assert abs(share.float().mean() - expected) < 5 * error
    ranges = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))
    for column, (low, high) in zip(p.factors.t(), ranges):
        assert low <= column.min() and column.max() <= high
        assert column.mean() == pytest.approx((low + high) / 2, abs=0.01)
        assert column.std() == pytest.approx((high - low) / 12**.5, rel=0.03)
    assert p.sigma.min() >= 0.1 and p.sigma.max() <= 2.
    # all orders and all shifts are equally frequent
    for codes, number in ((p.order @ torch.tensor([64, 16, 4, 1]), 24),
                          (p.shift @ torch.tensor([8, 1]), 64)):
        counts = codes.unique(return_counts=True)[1].double()
        assert len(counts) == number
        expected = 20000 / number
        chi2 = ((counts - expected)**2 / expected).sum()
        assert chi2 < number + 5 * (2 * number)**.5


def test_views_are_normalised_and_in_rgb():
    module = preprocessor(jitter_prob=0, grey_prob=0, blur_prob=0)
    image = photo()
    data = dict(
        inputs=to_batch(image[..., ::-1], image[..., ::-1]), data_samples=None)
    views = module(data, training=True)['inputs']
    mean, std = (torch.tensor(v).view(3, 1, 1)
                 for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    expected = (to_batch(image)[0, :, :24, :24].float() - mean) / std
    torch.testing.assert_close(views[0][1], expected)
    # without training it only normalises
    plain = module(dict(data, inputs=data['inputs'].float()))['inputs']
    torch.testing.assert_close(plain[0, :, :24, :24], expected)


@pytest.mark.parametrize('kwargs, named', [
    (dict(canvas_size=31), 'canvas of 31 pixels .* must be 32'),
    (dict(size=0), 'size must be .* got 0'),
    (dict(grey_prob=1.5), 'grey_prob .* got 1.5'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        preprocessor(**kwargs)
    with pytest.raises(ValueError, match='canvas of 30 pixels'):
        preprocessor().make_views(
            torch.zeros(1, 3, 30, 40, dtype=torch.uint8), None)


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


def encode(image, kind='JPEG', **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


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


def bad_inputs():
    """One file of each awkward kind: name, bytes, and whether it is usable."""
    rgb = Image.fromarray(photo(40))
    jpeg = encode(rgb, quality=95)
    deep = Image.fromarray(
        photo(40)[..., 0].astype(np.uint16) * 257)
    upright = Image.fromarray(photo(40)[:20])
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = rgb.convert('L')
    return [
        ('truncated.jpg', jpeg[:len(jpeg) // 2], False),
        ('zero.jpg', b'', False),
        ('text.jpg', b'not an image', False),
        ('cmyk.jpg', encode(rgb.convert('CMYK'), quality=95), True),
        ('deep.png', encode(deep, 'PNG'), True),
        ('palette.png', encode(rgb.quantize(256), 'PNG'), True),
        ('grey.jpg', encode(grey, quality=95), True),
        ('rgba.png', encode(rgb.convert('RGBA'), 'PNG'), True),
        ('exif.jpg', encode(upright, quality=95, exif=exif), True),
        ('one.png', encode(rgb.crop((0, 0, 1, 1)), 'PNG'), True),
        ('long.jpg', encode(rgb.resize((20000, 16)), quality=95), True),
        ('huge.jpg', encode(rgb.resize((20000, 4000)), quality=50), True),
        ('webp.webp', encode(rgb, 'WEBP', lossless=True), True),
    ]


@pytest.mark.parametrize(
    'name, data, usable', bad_inputs(), ids=[n for n, _, _ in bad_inputs()])
def test_awkward_files(name, data, usable, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.transforms.loading.print_log',
                        lambda text, **kwargs: said.append(text))
    path = tmp_path / name
    path.write_bytes(data)
    result = LoadCanvas(32)(dict(img_path=str(path), view_seed=1))
    if not usable:
        assert result is None and len(said) == 1 and name in said[0]
        return
    assert not said
    assert result['img'].shape == (32, 32, 3)
    assert result['img'].dtype == np.uint8


def test_awkward_files_are_decoded_rightly():
    files = {name: data for name, data, _ in bad_inputs()}
    image = photo(40)[..., ::-1].astype(int)

    def decoded(name):
        return decode_image(files[name]).astype(int)

    for name in ('rgba.png', 'webp.webp'):
        assert (decoded(name) == image).all(), name
    assert np.abs(decoded('cmyk.jpg') - image).mean() < 8
    assert np.abs(decoded('palette.png') - image).mean() < 12
    # 16 bits become the upper 8, grey becomes colour
    assert (decoded('deep.png') == photo(40)[..., :1]).all()
    grey = decoded('grey.jpg')
    assert (grey[..., 0] == grey[..., 1]).all()
    # a quarter turn clockwise stands upright
    upright = decoded('exif.jpg')
    assert upright.shape == (40, 20, 3)
    turned = np.rot90(photo(40)[:20], -1)[..., ::-1]
    assert np.abs(upright - turned).mean() < 6
    assert decoded('one.png').shape == (1, 1, 3)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientations_are_pillows(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(
        Image.fromarray(photo(40)[:24]), quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = decode_image(data)[..., ::-1].astype(int)
    assert np.abs(ours - np.asarray(expected)).mean() < 1


def test_large_jpegs_are_decoded_small():
    data = encode(Image.fromarray(photo(400)), quality=95)
    assert decode_image(data, shrink_to=201).shape == (400, 400, 3)
    half = decode_image(data, shrink_to=200)
    assert half.shape == (200, 200, 3)
    expected = Image.fromarray(photo(400)).resize((200, 200),
                                                  Image.Resampling.BOX)
    difference = half.astype(int) - np.asarray(expected)[..., ::-1]
    assert np.abs(difference).mean() < 2
    assert decode_image(data, shrink_to=50).shape == (50, 50, 3)


def test_images_beyond_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr('cmae_mm.datasets.decoding.MAX_PIXELS', 1000)
    for kind in ('PNG', 'JPEG'):
        with pytest.raises(UndecodableImage, match='40x40 pixels are more'):
            decode_image(encode(Image.fromarray(photo(40)), kind))


def views_of_two_epochs(root, num_workers):
    """All views of a loader, through a runner's own construction."""
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            sampler=dict(type='SeededSampler', shuffle=True, seed=3),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='PretrainingDataset',
                data_root=str(root),
                pipeline=[
                    dict(type='LoadCanvas', size=32),
                    dict(
                        type='PackInputs',
                        meta_keys=('img_path', 'view_seed'))
                ])))
    module = preprocessor()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        np.random.seed(num_workers)  # must not matter
        epochs.append([module(batch, training=True)['inputs']
                       for batch in loader])
    return epochs


def test_the_same_views_whatever_the_number_of_workers(tmp_path):
    write_images(tmp_path, 11)
    (tmp_path / 'broken.jpg').write_text('no image')
    runs = [views_of_two_epochs(tmp_path, n) for n in (0, 1, 2)]
    for other in runs[1:]:
        for epoch, again in zip(runs[0], other):
            for views, same in zip(epoch, again):
                assert all(torch.equal(a, b) for a, b in zip(views, same))
    # while another epoch has other views
    first, second = runs[0]
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(first, second))


def test_a_seed_is_a_whole_drawing(tmp_path):
    write_images(tmp_path, 1)
    dataset = PretrainingDataset(
        data_root=str(tmp_path),
        pipeline=[dict(type='LoadCanvas', size=32)])
    from cmae_mm.datasets.samplers import SeededIndex
    one, two, other = (dataset[SeededIndex(0, seed)]['img']
                       for seed in (5, 5, 6))
    assert (one == two).all() and not (one == other).all()
    module = preprocessor()
    a, b = (module.draw_params(3, seeds) for seeds in ([1, 2, 3], [1, 2, 4]))
    assert not torch.equal(a.factors, b.factors)


def test_the_benchmark_reports_every_key(tmp_path):
    write_images(tmp_path / 'data', 3, size=300)
    out = tmp_path / 'out.json'
    done = subprocess.run([
        sys.executable, 'tools/benchmarks/benchmark_data.py', '--data',
        str(tmp_path / 'data'), '--seconds', '2', '--rounds', '1',
        '--batch-size', '4', '--json', str(out)
    ], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    import json
    result = json.loads(out.read_text())
    assert set(result) == {
        'decode', 'worker', 'cpu_two_views', 'preprocessor',
        'worker_over_cpu', 'worker_over_decode'
    }
    assert all(v > 0 for v in result.values())
    assert '(b) / (c)' in done.stdout and Path(out).exists()


def cmae_store(*args):
    return subprocess.run(
        [sys.executable, '-m', 'cmae_mm', 'store', *map(str, args)],
        cwd=ROOT, capture_output=True, text=True)


def test_a_store_gives_the_same_canvases(tmp_path):
    source, store = tmp_path / 'images', tmp_path / 'store'
    write_images(source / 'a', 3)
    write_images(source / 'ü b', 2, seed=1)
    done = cmae_store(source, store)
    assert done.returncode == 0 and '5 images' in done.stdout, done.stderr
    pipeline = [dict(type='LoadCanvas', size=32)]
    folder, stored = (
        PretrainingDataset(data_root=str(root), pipeline=pipeline)
        for root in (source, store))
    assert len(folder) == len(stored) == 5
    from cmae_mm.datasets.samplers import SeededIndex
    for i in range(5):
        a, b = (d[SeededIndex(i, 7)] for d in (folder, stored))
        assert (a['img'] == b['img']).all()
        assert a['img_path'].endswith(b['img_path'])
    # written in full: not written again
    again = cmae_store(source, store)
    assert again.returncode != 0 and 'whole store already' in again.stderr


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    from cmae_mm.datasets import image_store
    monkeypatch.setattr(image_store, '_COMMIT_EVERY', 2)
    source, store = tmp_path / 'images', tmp_path / 'store'
    write_images(source, 7)
    steps = image_store.write_store(source, store, ('.jpg', ))
    assert [next(steps)[0] for _ in range(3)] == [0, 2, 4]
    steps.close()  # as when killed
    assert not image_store.is_store(str(store))
    read = []
    real = image_store.shrink
    monkeypatch.setattr(image_store, 'shrink',
                        lambda d, s, n: read.append(n) or real(d, s, n))
    assert list(image_store.write_store(source, store, ('.jpg', )))[-1] == (
        14, 14)
    assert read == ['004.jpg', '005.jpg', '006.jpg']
    assert image_store.is_store(str(store))


def test_damage_and_mistakes_are_found(tmp_path, monkeypatch):
    from cmae_mm.datasets import image_store
    source, store = tmp_path / 'images', tmp_path / 'store'
    write_images(source, 3)
    monkeypatch.setattr(image_store, 'shrink', lambda d, s, n: d[:-1])
    with pytest.raises(image_store.StoreError, match='does not read back'):
        list(image_store.write_store(source, store, ('.jpg', )))
    assert not image_store.is_store(str(store))
    with pytest.raises(image_store.StoreError, match='begun with other'):
        list(image_store.write_store(source, store, ('.jpg', ), 20))
    with pytest.raises(image_store.StoreError, match='not empty'):
        list(image_store.write_store(source, source, ('.jpg', )))
    with pytest.raises(image_store.StoreError, match='no images'):
        list(image_store.write_store(source, tmp_path / 'x', ('.png', )))


def test_a_store_of_smaller_images(tmp_path):
    source, store = tmp_path / 'images', tmp_path / 'store'
    write_images(source, 2, size=60)
    write_images(source / 'small', 1, size=20)
    (source / 'text.jpg').write_text('no image')
    done = cmae_store(source, store, '--short-side', 30)
    assert done.returncode == 0, done.stderr
    assert 'text.jpg cannot be decoded' in done.stdout + done.stderr
    dataset = PretrainingDataset(data_root=str(store))
    sides = []
    for i in range(4):
        info = dataset.get_data_info(i)
        from mmengine import fileio
        data = fileio.get(info['img_key'], backend_args=info['backend_args'])
        if info['img_path'] != 'text.jpg':
            sides.append(decode_image(data).shape[0])
    assert sides == [30, 30, 20]


class KillItself:

    def __call__(self, results):
        import os
        import signal
        os.kill(os.getpid(), signal.SIGKILL)


class Fail:

    def __call__(self, results):
        raise KeyError('a mistake in a transform')


@pytest.mark.parametrize('transform, cause', [
    (KillItself(), 'killed by signal|worker .* exited unexpectedly'),
    (Fail(), 'a mistake in a transform'),
])
def test_a_workers_death_is_reported_with_its_cause(image_root, transform,
                                                    cause):
    dataset = PretrainingDataset(
        data_root=str(image_root), pipeline=[transform])
    loader = torch.utils.data.DataLoader(dataset, num_workers=1)
    with pytest.raises((RuntimeError, KeyError), match=cause):
        next(iter(loader))


@pytest.mark.parametrize('device', [
    'cpu',
    pytest.param(
        'cuda',
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason='needs a GPU'))
])
@pytest.mark.parametrize('count', [0, 1, 7])
def test_prefetched_batches_are_the_loaders(device, count):
    """All of them, in order, on the device; each is asked for in advance."""
    asked = []

    def collate(samples):
        asked.append(samples[0])
        return dict(
            inputs=torch.full((2, 3), samples[0], dtype=torch.uint8),
            data_samples=[f'sample {s}' for s in samples])

    loader = DataLoader(
        range(2 * count), batch_size=2, collate_fn=collate,
        pin_memory=device == 'cuda')
    prefetcher = DevicePrefetcher(loader, torch.device(device))
    assert len(prefetcher) == count and prefetcher.batch_size == 2
    assert prefetcher.sampler is loader.sampler
    seen = []
    for place, batch in enumerate(prefetcher):
        assert len(asked) == min(place + 2, count)
        assert batch['inputs'].device.type == device
        seen.append(int(batch['inputs'][0, 0]))
        assert batch['data_samples'][0] == f'sample {seen[-1]}'
    assert seen == list(range(0, 2 * count, 2))
