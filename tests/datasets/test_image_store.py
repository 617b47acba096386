"""Images in an LMDB store."""
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, write_images
from image_files import noise, numpy, opencv, pillow, tiff
from images import photo

from cmae_mm.datasets import PretrainingDataset
from cmae_mm.datasets.decode import decode_image, make_settings, peek
from cmae_mm.datasets.image_store import StoreError, read_types, write_store
from cmae_mm.datasets.samplers import SeededIndex
from cmae_mm.datasets.shrinking import ShrinkError, shrink
from cmae_mm.datasets.source import SourceError, kind_of


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
    assert kind_of(store) == 'folder'
    read = []
    real = image_store.shrink
    monkeypatch.setattr(image_store, 'shrink',
                        lambda d, s, n: read.append(n) or real(d, s, n))
    assert list(image_store.write_store(source, store, ('.jpg', )))[-1] == (
        14, 14)
    assert read == ['004.jpg', '005.jpg', '006.jpg']
    assert kind_of(store) == 'store'


def test_damage_and_mistakes_are_found(tmp_path, monkeypatch):
    from cmae_mm.datasets import image_store
    source, store = tmp_path / 'images', tmp_path / 'store'
    write_images(source, 3)
    monkeypatch.setattr(image_store, 'shrink', lambda d, s, n: d[:-1])
    with pytest.raises(image_store.StoreError, match='does not read back'):
        list(image_store.write_store(source, store, ('.jpg', )))
    assert kind_of(store) == 'folder'
    with pytest.raises(image_store.StoreError, match='begun with other'):
        list(image_store.write_store(source, store, ('.jpg', ), 20))
    with pytest.raises(image_store.StoreError, match='not empty'):
        list(image_store.write_store(source, source, ('.jpg', )))
    with pytest.raises(SourceError, match='no images'):
        list(image_store.write_store(source, tmp_path / 'x', ('.png', )))


def test_a_store_of_smaller_images(tmp_path):
    source, store = tmp_path / 'images', tmp_path / 'store'
    write_images(source, 2, size=60)
    write_images(source / 'small', 1, size=20)
    (source / 'text.jpg').write_text('no image')
    done = cmae_store(source, store, '--short-side', 30)
    assert done.returncode == 0, done.stderr
    assert 'text.jpg cannot be decoded' in done.stdout + done.stderr
    assert '3 of 3 x uint8, 1 of unreadable' in done.stdout
    dataset = PretrainingDataset(data_root=str(store))
    sides = []
    for i in range(4):
        info = dataset.get_data_info(i)
        from mmengine import fileio
        data = fileio.get(info['img_key'], backend_args=info['backend_args'])
        if info['img_path'] != 'text.jpg':
            sides.append(decode_image(data).shape[0])
    assert sides == [30, 30, 20]


# Images, and the type of each.
DEEP = {
    'five.tif': (tiff(noise((60, 80, 5))), '5 x uint16'),
    'grey.png': (pillow(noise((60, 80)), 'PNG'), '1 x uint16'),
    'colour.png': (opencv(noise((60, 80, 3)), '.png'), '3 x uint16'),
    'float.npy': (numpy(noise((60, 80, 4), 'float32') / 4096), '4 x float32'),
    'alpha.png': (pillow(np.dstack([photo(60)] * 2)[..., :4], 'PNG'),
                  '4 x uint8'),
    'grey alpha.png': (pillow(photo(60)[..., :2].copy(), 'PNG'),
                       '2 x uint8'),
    'photo.jpg': (pillow(photo(60), 'JPEG'), '3 x uint8'),
    'grey.jpg': (pillow(photo(60)[..., 0], 'JPEG'), '1 x uint8'),
}


@pytest.mark.parametrize('name', DEEP)
def test_smaller_copies_keep_type_and_channels(name):
    data, kind = DEEP[name]
    assert str(peek(data, name)) == kind
    small = shrink(data, 30, name)
    if name == 'grey.jpg':
        kind = '3 x uint8'  # repeated, as it is read
    assert str(peek(small, name)) == kind
    channels, _, dtype = kind.split()
    wanted = make_settings(channels=int(channels), dtype=dtype)
    before, after = (decode_image(d, None, wanted, name)
                     for d in (data, small))
    assert min(after.shape[:2]) == 30
    assert after.mean() == pytest.approx(before.mean(), rel=0.03)
    assert shrink(data, 60, name) == data


def test_what_a_smaller_copy_would_lose_is_refused(tmp_path):
    for array in (noise((60, 80), 'int16'), noise((60, 80), 'float64'),
                  noise((60, 80), 'float32') * np.nan):
        with pytest.raises(ShrinkError, match='x.npy is .*leave --short-side'):
            shrink(numpy(array), 30, 'x.npy')
    with pytest.raises(ShrinkError, match='x.tif has 3 pages'):
        shrink(tiff(noise((3, 60, 80)), metadata=None,
                    photometric='minisblack'), 30, 'x.tif')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/x.npy').write_bytes(numpy(noise((60, 80), 'int16')))
    with pytest.raises(StoreError, match='leave --short-side out'):
        list(write_store(tmp_path / 'a', tmp_path / 'b', ('.npy', ), 30))


def test_a_store_of_deep_images(tmp_path):
    source, store = tmp_path / 'images', tmp_path / 'store'
    source.mkdir()
    for number in range(3):
        (source / f'{number}.tif').write_bytes(
            tiff(noise((60, 80, 5), seed=number)))
    list(write_store(source, store, ('.tif', )))
    assert read_types(str(store)) == {'5 x uint16': 3}
    pipeline = [dict(type='LoadCanvas', size=32, channels=5, dtype='uint16')]
    for root in (source, store):
        sample = PretrainingDataset(
            data_root=str(root), pipeline=pipeline)[SeededIndex(1, 7)]
        assert sample['img'].dtype == 'uint16'
        assert sample['img'].shape == (32, 32, 5)
