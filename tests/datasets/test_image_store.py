"""Images in an LMDB store."""
import subprocess
import sys

import pytest
from helpers import ROOT, write_images

from cmae_mm.datasets import PretrainingDataset
from cmae_mm.datasets.decoding import decode_image


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
