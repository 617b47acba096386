"""Shards: written, verified, gone on with, read, and the same training."""
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
from helpers import ROOT, run_commands, write_images
from PIL import Image

from cmae_mm.datasets import PretrainingDataset
from cmae_mm.datasets.samplers import SeededIndex
from cmae_mm.datasets.source import (
    IMG_EXTENSIONS,
    ShardBackend,
    SourceError,
    kind_of,
)

webdataset = pytest.importorskip('webdataset')

from cmae_mm.datasets.shard_writing import write_shards  # noqa: E402

NAMES = 12


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    write_images(root / 'b', 5)
    write_images(root / 'a.x', 6, seed=1)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / 'a.x/ä.b.PNG')
    return root


def write(source, folder, **kwargs):
    return list(write_shards(source, folder, IMG_EXTENSIONS,
                             **{'images_per_shard': 5, **kwargs}))


@pytest.fixture(scope='module')
def shards(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards') / 'out'
    steps = write(images, folder)
    assert steps == [(5, 24), (10, 24), (12, 24), (17, 24), (22, 24), (24, 24)]
    return folder


def data_set(root):
    return PretrainingDataset(
        data_root=str(root), pipeline=[dict(type='LoadCanvas', size=16)])


def test_training_sees_what_it_sees_in_the_folder(images, shards, tmp_path):
    moved = shutil.copytree(shards, tmp_path / 'moved')
    folder, packed = data_set(images), data_set(moved)
    assert len(folder) == len(packed) == NAMES
    for index in range(NAMES):
        one, other = (d[SeededIndex(index, 7)] for d in (folder, packed))
        assert (one['img'] == other['img']).all()
        assert one['img_path'] == str(images / other['img_path'])
    labelled = [PretrainingDataset(data_root=str(root), with_label=True)
                for root in (images, moved)]
    for index in range(NAMES):
        one, other = (d.get_data_info(index) for d in labelled)
        assert one['gt_label'] == other['gt_label']
    assert labelled[0].CLASSES == labelled[1].CLASSES == ('a.x', 'b')


def test_the_library_reads_them(images, shards):
    pattern = str(shards / 'shard-{000000..000002}.tar')
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert len(samples) == NAMES
    for number, sample in enumerate(samples):
        assert sample['__key__'] == f'{number:09d}'
        path = images / json.loads(sample['json'])['path']
        assert sample[path.suffix[1:].lower()] == path.read_bytes()


def test_an_interrupted_one_goes_on(images, tmp_path):
    """After each step of it, and bit by bit the same in the end."""
    write(images, tmp_path / 'whole')
    steps = 6
    for stop in range(1, steps + 1):
        folder = tmp_path / f'stopped_{stop}'
        running = write_shards(images, folder, IMG_EXTENSIONS, 5)
        for _ in range(stop):
            next(running)
        running.close()
        assert kind_of(folder) == 'folder'
        times = {p: p.stat().st_mtime_ns for p in folder.glob('shard-*.tar')}
        assert len(times) == min(stop, 3)
        write(images, folder, num_workers=stop % 2)
        assert all(p.stat().st_mtime_ns == t for p, t in times.items())
        for path in (tmp_path / 'whole').iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes()
        assert len(list(folder.iterdir())) == 6


def test_what_is_damaged_is_named(images, tmp_path):
    running = write_shards(images, tmp_path / 'bad', IMG_EXTENSIONS, 5)
    for _ in range(3):
        next(running)
    path = tmp_path / 'bad/shard-000001.tar'
    data = bytearray(path.read_bytes())
    data[700] ^= 1  # in its first image
    path.write_bytes(data)
    with pytest.raises(SourceError, match='000001.tar does not read back'):
        list(running)
    path.unlink()
    write(images, tmp_path / 'bad')
    os.truncate(path, 3000)
    with pytest.raises(ValueError, match=r'000001.tar has 3000 bytes instead'):
        data_set(tmp_path / 'bad')
    path.unlink()
    with pytest.raises(ValueError, match='000001.tar is missing'):
        data_set(tmp_path / 'bad')


@pytest.mark.parametrize('prepare, named', [
    (lambda out, images: write(images, out, images_per_shard=6)[:0] or
     (out / 'shards.json').rename(out / 'shards.partial.json'),
     'begun with other images or settings'),
    (lambda out, images: write(images, out), 'holds whole shards already'),
    (lambda out, images: out.mkdir() or (out / 'x').touch(), 'is not empty')])
def test_nothing_is_overwritten(prepare, named, images, tmp_path):
    prepare(tmp_path / 'out', images)
    with pytest.raises(SourceError, match=named):
        write(images, tmp_path / 'out')


def test_shards_of_others_are_indexed_where_they_are(shards, tmp_path):
    there = tmp_path / 'there'
    there.mkdir()
    for number in range(2):
        with tarfile.open(there / f'{number}.tar', 'w') as tar:
            for path in sorted(shards.glob('*.tar'))[number:number + 1]:
                with tarfile.open(path) as source:
                    for member in source:
                        tar.addfile(member, source.extractfile(member))
    write(there, tmp_path / 'index')
    assert sorted(p.name for p in (tmp_path / 'index').iterdir()) == [
        'images.txt', 'places.npy', 'shards.json']
    ours, theirs = data_set(shards), data_set(tmp_path / 'index')
    assert len(theirs) == 10
    for index in range(10):
        one, other = (d[SeededIndex(index, 3)] for d in (ours, theirs))
        assert (one['img'] == other['img']).all()
    assert other['img_path'] == '1.tar/000000009.jpg'
    with pytest.raises(SourceError, match='shards and their index already'):
        write(tmp_path / 'index', tmp_path / 'none')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SourceError, match='no images and no shards'):
        write(tmp_path / 'empty', tmp_path / 'none')


def test_few_files_are_open_at_a_time(shards):
    backend = ShardBackend(str(shards))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr('cmae_mm.datasets.source._MOST_OPEN', 2)
        data = [backend.get(str(i)) for i in (0, 5, 10, 1, 0)]
    assert data[0] == data[-1] and len(backend._opened) == 2


def test_the_command_and_a_training_from_shards(images, tmp_path):
    train = ['train', 'configs/quickstart/cmae_vit-mini_tiles.py',
             '--work-dir', tmp_path / 'work', '--cfg-options',
             'train_dataloader.batch_size=4', 'train_dataloader.num_workers=1',
             f'train_dataloader.dataset.data_root={tmp_path / "out"}',
             'train_dataloader.dataset.pipeline.1.type=LoadCanvas',
             'train_dataloader.dataset.pipeline.1.size=80',
             'train_cfg.max_iters=2']
    (first, said), (second, _) = run_commands(
        ['shards', images, tmp_path / 'out', '--images-per-shard', '4',
         '--json'], train,
        PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    assert first == second == 0, said
    assert json.loads(said.splitlines()[-1])['shards'] == 3
    assert (tmp_path / 'work/iter_2.pth').exists()
