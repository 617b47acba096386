"""`cmae stats`, compared with a plain loop."""
import json
import os

import numpy as np
import pytest
import torch
from helpers import DEEP, run_commands, small_disk, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from image_files import noise, numpy, opencv, pillow, tiff
from images import photo
from PIL import Image

from cmae_mm.datasets import LoadCanvas
from cmae_mm.datasets.pack import pack_images
from cmae_mm.datasets.stats import (ImageStatsError, measure, measure_images,
                                    read_image_stats, write_image_stats)

GOOD = dict(
    images=3, channels=2, dtype='uint16', mean=[10., 400.], std=[2., 30.],
    min=[0, 300], max=[20, 4095], sizes={}, types={}, broken=[])


def smooth(height, width, channels, dtype='uint16', high=4096, seed=0):
    """A scene without edges, of any number of channels."""
    coarse = torch.from_numpy(noise((5, 6, channels), 'float32', high, seed))
    fine = torch.nn.functional.interpolate(
        coarse.permute(2, 0, 1)[None], (height, width), mode='bilinear')
    return fine[0].permute(1, 2, 0).numpy().astype(dtype)


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_numbers_are_those_of_a_plain_loop(tmp_path):
    scenes = [smooth(40 + n, 50, 4, seed=n) for n in range(5)]
    write(tmp_path, {f'{n}.tif': tiff(s) for n, s in enumerate(scenes)})
    found = measure_images(tmp_path, num_workers=0, side=43)
    assert (found['images'], found['channels'], found['dtype']) == (
        5, 4, DEEP)
    for c in range(4):
        # Each image counts the same.
        means = [float(s[..., c].astype(float).mean()) for s in scenes]
        mean = sum(means) / 5
        var = sum(float(((s[..., c] - mean)**2).mean()) for s in scenes) / 5
        assert found['mean'][c] == pytest.approx(mean, rel=1e-8)
        assert found['std'][c] == pytest.approx(var**0.5, rel=1e-8)
        assert found['min'][c] == min(s[..., c].min() for s in scenes)
        assert found['max'][c] == max(s[..., c].max() for s in scenes)
        assert found['min'][c] <= found['low'][c] < found['high'][c] <= (
            found['max'][c])
    assert found['sizes'] == dict(height=[40, 42, 44], width=[50, 50, 50],
                                  side=43, smaller=3, strips=0)
    assert found['types'] == {'4 x uint16': 5}
    assert found['settings'] == dict(channels=4, dtype=DEEP)
    assert not found['broken'] and not found['duplicates']


@settings(deadline=None)
@given(arrays.arrays('float32', st.tuples(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 3)),
    elements=st.floats(-1e4, 1e4, width=32)), st.integers(0, 10**6))
def test_moments_are_numpys(values, offset):
    values = values + np.float32(offset)
    mean, var, low, high = measure(values)
    exact = values.astype(float)
    np.testing.assert_allclose(mean, exact.mean((0, 1)), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1)), rtol=1e-6, atol=1e-3)
    assert (low == values.min((0, 1))).all()
    assert (high == values.max((0, 1))).all()


def test_stats_file_configures_loading(tmp_path):
    """Canvases, normalised by it, have mean 0 and deviation 1."""
    for n in range(12):
        array = smooth(90, 90, 6, 'float32', 1000, n) / 1000 - 0.3
        write(tmp_path / 'a', {f'{n}.npy': numpy(array)})
    write_image_stats(
        measure_images(tmp_path / 'a', num_workers=0), tmp_path / 's.json')
    stats = read_image_stats(tmp_path / 's.json')
    assert stats['settings'] == dict(channels=6, dtype='float32')
    load = LoadCanvas(32, crop_ratio_range=(0.9, 1), **stats['settings'])
    canvases = np.stack([
        load(dict(img_path=str(p)))['img']
        for p in sorted((tmp_path / 'a').iterdir())])
    scaled = (canvases - stats['mean']) / stats['std']
    assert np.abs(scaled.mean((0, 1, 2))).max() < 0.1
    assert np.abs(scaled.std((0, 1, 2)) - 1).max() < 0.1


def test_broken_repeated_and_unfit_images_are_named(tmp_path):
    scenes = [photo(60, seed) for seed in range(3)]
    write(tmp_path, {
        'a.png': pillow(scenes[0], 'PNG'), 'b.png': pillow(scenes[1], 'PNG'),
        'c.png': pillow(scenes[0], 'PNG'),
        # the same photograph, smaller and compressed
        'd.jpg': pillow(np.asarray(Image.fromarray(scenes[1]).resize(
            (50, 50))), 'JPEG', quality=90),
        'e.png': pillow(scenes[2][..., 0], 'PNG'),
        'f.png': b'', 'g.tif': tiff(smooth(60, 60, 5)),
        'h.tif': tiff(noise((3, 60, 60)), metadata=None,
                      photometric='minisblack'),
        'flat.png': pillow(np.zeros((60, 60), 'uint8'), 'PNG'),
        'flat2.png': pillow(np.zeros((70, 60), 'uint8'), 'PNG'),
    })
    found = measure_images(tmp_path, num_workers=0)
    assert (found['channels'], found['dtype']) == (3, 'uint8')
    assert [b['path'] for b in found['broken']] == ['f.png']
    assert {u['path'] for u in found['unfit']} == {'g.tif', 'h.tif'}
    assert "set pages='channels'" in found['unfit'][0]['reason']
    assert found['duplicates'] == [['a.png', 'c.png']]
    assert found['types'] == {'3 x uint8': 4, '1 x uint8': 3, '5 x uint16': 1}
    five = measure_images(tmp_path, num_workers=0, channels=5)
    assert five['channels'] == 5 and five['unfit_count'] == 8
    with pytest.raises(ValueError, match='none of the 10 images.*used: h.tif'):
        measure_images(tmp_path, num_workers=0, channels=7)
    assert [b['reason'] for b in found['broken']] == ['it is empty']
    reasons = {u['path']: u['reason'] for u in found['unfit']}
    assert reasons['g.tif'] == (
        'g.tif has 5 channel(s), not 3; bands=(...) chooses 3 of them')
    reasons = {u['path']: u['reason'] for u in five['unfit']}
    assert reasons['a.png'] == 'a.png has 3 channel(s), not 5'


def test_notes_and_settings(tmp_path):
    grey = np.stack([photo(40)[..., 0]] * 3, 2)
    folder = write(tmp_path / 'grey', {'a.png': pillow(grey, 'PNG')})
    found = measure_images(folder, num_workers=0)
    assert any('channels=1 contains the same' in n for n in found['notes'])
    assert measure_images(folder, channels=1)['mean'] == found['mean'][:1]
    holes = smooth(40, 40, 2, 'float32')
    holes[:10, :, 0] = np.nan
    folder = write(tmp_path / 'holes', {
        'a.npy': numpy(holes), 'b.tif': tiff(smooth(40, 40, 2))})
    found = measure_images(folder, num_workers=0)
    assert found['settings'] == dict(channels=2, dtype='float32', fill='mean')
    assert found['missing'] == 1
    assert any('several types' in n for n in found['notes'])
    expected = (np.nanmean(holes[..., 0]) + smooth(40, 40, 2)[..., 0].mean())
    assert found['mean'][0] == pytest.approx(expected / 2, rel=1e-5)
    chosen = measure_images(folder, num_workers=0, bands=[1],
                            value_range=(0, 4096))
    assert chosen['settings'] == dict(
        channels=1, dtype='float32', bands=(1, ),
        value_range=((0, ), (4096, )))
    assert chosen['mean'][0] == pytest.approx(found['mean'][1] / 4096,
                                              rel=1e-5)
    assert json.dumps(chosen)


def test_a_sample_of_a_store_and_of_the_training_folder(tmp_path):
    write_images(tmp_path / 'a/train/x', 9)
    write_images(tmp_path / 'a/val/x', 3)
    pack_images(tmp_path / 'a', tmp_path / 'b', 'shards')
    found = [measure_images(tmp_path / name, sample=4, num_workers=workers)
             for name, workers in (('a', 0), ('b', 2))]
    assert found[0]['images'] == 9 and found[0]['sampled'] == 4
    assert found[0]['mean'] == found[1]['mean']
    assert found[0]['images'] == found[1]['images']
    assert found[0]['data'].endswith('a/train')


def test_missing_pixels_do_not_count(tmp_path):
    """Not of one band alone either: means are those of nanmean."""
    first = smooth(40, 40, 3, 'float32', 100)
    second = smooth(40, 40, 3, 'float32', 100, seed=1) + 100
    second[..., 2] = np.nan
    second[:9, :, 1] = np.nan
    folder = write(tmp_path / 'a', {
        'a.npy': numpy(first), 'b.npy': numpy(second)})
    found = measure_images(folder, num_workers=0)
    means = [np.nanmean(x, (0, 1)) for x in (first, second)]
    expected = [(means[0][c] + means[1][c]) / 2 for c in (0, 1)] + [
        means[0][2]]
    assert found['mean'] == pytest.approx(expected, rel=1e-5)
    assert found['std'][2] == pytest.approx(first[..., 2].std(), rel=1e-5)
    assert found['min'][2] == pytest.approx(first[..., 2].min())
    values = first[..., 2]
    assert found['low'][2] == pytest.approx(np.quantile(values, 0.001), abs=1)
    assert ('channel(s) 1, 2: without a valid pixel in some images, which are '
            'ignored for it') not in found['notes']
    assert ('channel(s) 2: without a valid pixel in some images, which are '
            'ignored for it') in found['notes']
    # A band that no image has.
    first[..., 2] = np.inf
    (folder / 'a.npy').write_bytes(numpy(first))
    with pytest.raises(ValueError, match=(
            r"no image of .*a has a valid pixel in channel\(s\) 2.*bands")):
        measure_images(folder, num_workers=0)
    assert measure_images(folder, num_workers=0, bands=[0, 1])['mean'] == (
        pytest.approx(expected[:2], rel=1e-5))


def test_nodata_is_that_of_each_band(tmp_path):
    rasterio = pytest.importorskip('rasterio')
    bands = np.stack([smooth(30, 30, 1, seed=s)[..., 0] + 1 for s in range(3)])
    bands[0, :10] = 0
    bands[1, :, 20:] = 0
    options = dict(driver='GTiff', width=30, height=30, count=3,
                   dtype='uint16', nodata=0, crs='EPSG:32632',
                   transform=rasterio.transform.from_origin(0, 0, 1, 1))
    with rasterio.open(tmp_path / 'a.tif', 'w', **options) as file:
        file.write(bands)
    with rasterio.open(tmp_path / 'a.tif') as file:
        read = file.read(masked=True)
    found = measure_images(tmp_path, num_workers=0)
    for c in range(3):
        assert found['mean'][c] == pytest.approx(read[c].mean(), rel=1e-8)
        assert found['min'][c] == read[c].min()
    assert found['missing'] == 1 and found['settings']['fill'] == 'mean'


def test_images_without_any_pixel(tmp_path):
    """Broken, as training skips them; of no weight with a value for them."""
    scene = smooth(20, 20, 2, 'float32')
    folder = write(tmp_path, {
        'a.npy': numpy(scene), 'b.npy': numpy(scene * np.nan)})
    found = measure_images(folder, num_workers=0)
    assert found['broken'] == [
        dict(path='b.npy', reason='all of its pixels are missing')]
    filled = measure_images(folder, num_workers=0, fill=-2.**127)
    assert not filled['broken'] and filled['missing'] == 1
    for name in ('mean', 'std', 'min', 'max', 'low', 'high'):
        assert filled[name] == found[name]


def test_alpha_and_constant_channels_are_noted(tmp_path):
    scene = np.dstack([photo(40), np.full((40, 40), 255, np.uint8)])
    other = np.dstack([photo(40, 1), np.full((40, 40), 255, np.uint8)])
    folder = write(tmp_path, {
        'a.png': pillow(scene, 'PNG'), 'b.png': pillow(other, 'PNG')})
    found = measure_images(folder, num_workers=0)
    assert (found['channels'], found['alpha']) == (3, 2)
    assert found['notes'] == ['alpha is dropped; channels=4 keeps it if all '
                              'images have it']
    four = measure_images(folder, num_workers=0, channels=4)
    assert four['std'][3] == 0
    assert four['notes'] == [
        'channel(s) 3: constant in all images, which training does not '
        'accept; choose other channels with bands (--bands)']
    write_image_stats(four, tmp_path / 'four.json')
    with pytest.raises(ImageStatsError, match='channel 3 has a standard dev'):
        read_image_stats(tmp_path / 'four.json')
    grey = pillow(np.dstack([photo(40)[..., 0]] * 3 + [photo(40)[..., 1]]),
                  'PNG')
    folder = write(tmp_path / 'grey', {'a.png': grey})
    assert measure_images(folder, num_workers=0, channels=1)['mean'] == [
        pytest.approx(photo(40)[..., 0].mean(), rel=1e-8)]


def test_skipped_files_are_reported(tmp_path):
    write_images(tmp_path / 'a', 3)
    os.mkfifo(tmp_path / 'a/fifo.jpg')
    (tmp_path / 'a/b.exr').touch()
    (tmp_path / 'a/dangling.jpg').symlink_to('nowhere')
    (tmp_path / 'a/line\nbreak \udce9.png').write_bytes(b'text')
    found = measure_images(tmp_path / 'a', num_workers=0)
    assert found['images'] == 4 and found['broken_count'] == 1
    assert found['broken'][0]['path'] == 'line\nbreak \udce9.png'
    for said in ('1 .exr', '1 special file (fifo.jpg)',
                 '1 dangling link (dangling.jpg)'):
        assert said in found['source']
    write_image_stats(found, tmp_path / 'stats.json')
    read = read_image_stats(tmp_path / 'stats.json')
    assert read['broken'] == found['broken']
    (tmp_path / 'list.csv').write_text('path,split\na/000.jpg,train\n'
                                       'a/001.jpg,val\n')
    assert measure_images(tmp_path / 'list.csv', num_workers=0)['images'] == 1


def test_the_command_prints_and_writes(tmp_path):
    write(tmp_path / 'scans', {
        f'{n}.png': opencv(smooth(40, 50, 1, seed=n)[..., 0], '.png')
        for n in range(3)})
    (tmp_path / 'none').mkdir()
    results = run_commands(
        ['stats', 'scans', '--out', 'stats.json', '--json'],
        ['stats', 'scans', '--value-range', '0', '4095', '--dtype', 'uint8'],
        ['stats', 'none'],
        ['stats', 'scans', '--window', '40'],
        ['stats', 'scans', '--out', 'none'],
        ['stats', 'scans', '--fill', 'zero'],
        ['stats', 'scans', '--channels', '3', '--bands', '0', '1'],
        cwd=tmp_path)
    code, output = results[0]
    assert code == 0 and f'channels   1 of {DEEP}' in output
    assert "cmae pretrain scans --stats stats.json" in output
    result = json.loads(output.strip().splitlines()[-1])
    stats = read_image_stats(tmp_path / 'stats.json')
    assert {k: v for k, v in stats.items() if k != 'format'} == result
    assert stats['mean'][0] > 1000
    code, output = results[1]
    assert code == 0 and 'value_range' in output and ' of uint8' in output
    for (code, output), said in zip(results[2:], (
            'no images below', "window must be 2 values",
            'none: cannot be written: Is a directory',
            "must be a number or 'mean', but got 'zero'",
            'to the same number')):
        assert code in (1, 2) and said in output.strip().splitlines()[-1]


def test_written_files_read_back(tmp_path):
    write_image_stats(GOOD, tmp_path / 'a/stats.json')
    stats = read_image_stats(tmp_path / 'a/stats.json')
    assert stats == {'format': 'cmae_mm image stats 1', **GOOD}
    assert [p.name for p in (tmp_path / 'a').iterdir()] == ['stats.json']


@pytest.mark.parametrize('change,said', [
    (dict(format='other'), '"format" must be'),
    (dict(images=0), '"images" must be a whole number from 1, but is'),
    (dict(channels=65), 'from 1 to 64, but is .65.'),
    (dict(channels=True), '"channels"'),
    (dict(channels='3'), '"channels"'),
    (dict(dtype='int16'), 'uint8, uint16, float32, but is .int16.'),
    (dict(dtype=['uint8']), '"dtype"'),
    (dict(mean=[1.]), '"mean" must be a list of 2 finite numbers'),
    (dict(mean=10**400), '"mean"'),
    (dict(mean=[1, 10**400]), '"mean"'),
    (dict(std=[1., float('nan')]), '"std" must be a list of 2 finite'),
    (dict(max=['1', 2]), '"max"'),
    (dict(low=[None, 1]), '"low"'),
    (dict(high=3), '"high"'),
    (dict(mean=[10., 5000.]), 'channel 1, 5000.0, is not within its range'),
    (dict(std=[0., 1.]), 'channel 0 .*it is constant'),
    (dict(settings=3), '"settings"'),
    (dict(settings=dict(window='x')), '"settings" cannot be used .window'),
    (dict(settings=dict(new=1)), '"settings" cannot be used .*new'),
    (dict(settings=dict(value_range=[3])), '"settings"'),
    (dict(settings=dict(bands=5)), '"settings"'),
    (dict(settings=dict(channels=3)), '"channels" is 2, but its "settings"'),
    (dict(settings=dict(dtype='uint8')), '"dtype" is .uint16., but'),
])
def test_contradicting_arguments_raise(change, said, tmp_path):
    path = tmp_path / 'stats.json'
    path.write_text(json.dumps(
        {'format': 'cmae_mm image stats 1', **GOOD, **change}))
    with pytest.raises(ImageStatsError, match=f'stats.json.*{said}') as error:
        read_image_stats(path)
    assert len(str(error.value)) < 500 and '\n' not in str(error.value)


@pytest.mark.parametrize('text', [
    b'', b'mean 3', b'[1]', b'null', b'3', b'{"format": ', b'\xff\xfe', b'[' *
    100_000, b'{"images": ' + b'9' * 5000 + b'}'])
def test_damaged_files_are_refused(text, tmp_path):
    path = tmp_path / 'stats.json'
    with pytest.raises(ImageStatsError, match='cmae stats DATA --out'):
        read_image_stats(path)
    path.write_bytes(text)
    with pytest.raises(ImageStatsError, match='stats.json') as error:
        read_image_stats(path)
    assert '\n' not in str(error.value) and len(str(error.value)) < 500


def test_a_full_disk_leaves_the_old_file(tmp_path):
    with small_disk(tmp_path, 1 << 16) as disk:
        write_image_stats(GOOD, disk / 'stats.json')
        with pytest.raises(OSError, match='No space left') as error:
            write_image_stats({**GOOD, 'notes': ['x' * 70_000]},
                              disk / 'stats.json')
        assert error.value.filename == str(disk / 'stats.json')
        assert os.listdir(disk) == ['stats.json']
        assert read_image_stats(disk / 'stats.json')['mean'] == GOOD['mean']
