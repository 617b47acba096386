"""What `cmae stats` finds out about a folder, beside a plain loop."""
import json

import numpy as np
import pytest
import torch
from helpers import run_commands, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from image_files import noise, numpy, opencv, pillow, tiff
from images import photo
from PIL import Image

from cmae_mm.datasets import LoadCanvas
from cmae_mm.datasets.image_facts import measure
from cmae_mm.datasets.image_stats import read_image_stats, write_image_stats
from cmae_mm.datasets.image_store import write_store
from cmae_mm.datasets.measuring import measure_images


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
        5, 4, 'uint16')
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
    assert found['settings'] == dict(channels=4, dtype='uint16')
    assert not found['broken'] and not found['near_duplicates']


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


def test_its_file_gives_loading_what_it_needs(tmp_path):
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


def test_what_is_broken_repeated_or_unfit_is_named(tmp_path):
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
    assert found['near_duplicates'] == [['a.png', 'c.png'],
                                        ['b.png', 'd.jpg']]
    assert found['types'] == {'3 x uint8': 4, '1 x uint8': 3, '5 x uint16': 1}
    five = measure_images(tmp_path, num_workers=0, channels=5)
    assert five['channels'] == 5 and five['unfit_count'] == 8
    with pytest.raises(ValueError, match='none of the 10 images.*so: h.tif'):
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
    assert any('channels=1 holds the same' in n for n in found['notes'])
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
    list(write_store(tmp_path / 'a/train', tmp_path / 'b', ('.jpg', )))
    found = [measure_images(tmp_path / name, sample=4, num_workers=workers)
             for name, workers in (('a', 0), ('b', 2))]
    assert found[0]['images'] == 9 and found[0]['sampled'] == 4
    assert found[0]['mean'] == found[1]['mean']
    assert found[0]['data'].endswith('a/train')


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
    assert code == 0 and 'channels   1 of uint16' in output
    assert "cmae pretrain scans --stats stats.json" in output
    result = json.loads(output.strip().splitlines()[-1])
    stats = read_image_stats(tmp_path / 'stats.json')
    assert {k: v for k, v in stats.items() if k != 'format'} == result
    assert stats['mean'][0] > 1000
    code, output = results[1]
    assert code == 0 and 'value_range' in output and ' of uint8' in output
    for (code, output), said in zip(results[2:], (
            'no images below', '--window takes two numbers or file',
            'none: cannot be written: it is a folder',
            "must be a number or mean, but got 'zero'", 'both must agree')):
        assert code in (1, 2) and said in output.strip().splitlines()[-1]
