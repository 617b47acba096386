"""Stores and shards: content, and state after failed writes."""
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial

import lmdb
import numpy as np
import pytest
import tifffile
from helpers import ROOT, run_commands, small_disk, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import noise, numpy, opencv, pillow, tiff
from images import photo
from PIL import Image

from cmae_mm.datasets import PretrainingDataset, pack
from cmae_mm.datasets.decode import decode_image, make_settings, resize_image
from cmae_mm.datasets.pack import PackError, pack_images, shrink
from cmae_mm.datasets.samplers import SeededIndex
from cmae_mm.datasets.source import ShardBackend, SourceError, open_source
from cmae_mm.files import OutputInUse, output_lock

KINDS = ('store', 'shards')
both = pytest.mark.parametrize('kind', KINDS)
# Bytes of names that broke lines, quotes, and none that is UTF-8.
ODD_NAMES = [b'plain.jpg', b'line\nbreak.jpg', b'return\r.JPG', b'a b.jpg',
             b'\xc2\x85next\xe2\x80\xa8line.jpg', b'latin1_\xe9.jpg',
             b'"quoted".jpg', b' leading.jpg', 'ünï/\x0b\x1c猫.jpeg'.encode()]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """12 images of several formats in two folders."""
    root = tmp_path_factory.mktemp('images')
    write_images(root / 'b', 5)
    write_images(root / 'a.x', 6, seed=1)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / 'a.x/ä.b.PNG')
    return root


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Let stores have several transactions, too."""
    monkeypatch.setattr(pack, '_PART', 5)


def write(source, out, kind, **kwargs):
    if kind == 'shards':
        kwargs.setdefault('images_per_shard', 5)
    return pack_images(source, out, kind, **kwargs)


def content(out, kind):
    """Read the packed files by other libraries than ours."""
    if kind == 'store':
        # A process cannot open a file of LMDB twice.
        out = shutil.copytree(out, tempfile.mkdtemp(), dirs_exist_ok=True)
        with lmdb.open(str(out), readonly=True, lock=False) as env, (
                env.begin()) as transaction:
            found = list(transaction.cursor())
        assert [key for key, _ in found] == [
            b'%09d' % n for n in range(len(found))]
        return [bytes(data) for _, data in found]
    files = []
    for path in sorted(out.glob('*.tar')):
        with tarfile.open(path) as shard:
            files += [shard.extractfile(m).read() for m in shard
                      if not m.name.endswith(('.json', '.cls'))]
    return files


def listing(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@both
def test_files_names_and_order_are_those_of_the_folder(kind, tmp_path):
    """Whatever the names are; hidden files and links as in training."""
    root = tmp_path / 'images'
    for number, name in enumerate(ODD_NAMES):
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            file.write(pillow(photo(20, number), 'JPEG'))
    write_images(tmp_path / 'elsewhere', 2)
    (root / 'linked').symlink_to(tmp_path / 'elsewhere')
    (root / '.hidden.jpg').write_bytes(b'')
    os.mkfifo(root / 'fifo.jpg')
    result = write(root, tmp_path / 'out', kind)
    assert result['images'] == len(ODD_NAMES) + 2
    folder, packed = open_source(root), open_source(tmp_path / 'out')
    assert {os.fsencode(n) for n in packed.names} == {
        *ODD_NAMES, b'linked/000.jpg', b'linked/001.jpg'}
    assert list(packed.names) == list(folder.names)
    files = [(root / name).read_bytes() for name in folder.names]
    assert content(tmp_path / 'out', kind) == files
    assert [packed.read(i) for i in range(len(packed))] == files


@both
def test_training_sees_the_same_canvases(kind, images, tmp_path):
    write(images, tmp_path / 'out', kind)
    (tmp_path / 'out').rename(tmp_path / 'moved')
    folder, packed = (
        PretrainingDataset(data_root=str(root), pipeline=[
            dict(type='LoadCanvas', size=16)])
        for root in (images, tmp_path / 'moved'))
    assert len(folder) == len(packed) == 12
    for index in range(12):
        one, other = (d[SeededIndex(index, 7)] for d in (folder, packed))
        assert (one['img'] == other['img']).all()


def test_webdataset_reads_shards(images, tmp_path):
    webdataset = pytest.importorskip('webdataset')
    write(images, tmp_path / 'out', 'shards', num_workers=2)
    samples = list(webdataset.WebDataset(
        str(tmp_path / 'out/shard-{000000..000002}.tar'), shardshuffle=False))
    assert len(samples) == 12
    for number, sample in enumerate(samples):
        assert sample['__key__'] == f'{number:09d}'
        path = images / json.loads(sample['json'])['path']
        assert sample[path.suffix[1:].lower()] == path.read_bytes()


@both
def test_a_store_or_shards_can_be_packed_again(kind, images, tmp_path):
    images = shutil.copytree(images, tmp_path / 'images')
    write_images(images, 1)  # beside the class folders
    write(images, tmp_path / 'one', kind)
    for other in KINDS:
        write(tmp_path / 'one', tmp_path / other, other)
        assert content(tmp_path / other, other) == content(
            tmp_path / 'one', kind)
        assert list(open_source(tmp_path / other).names) == list(
            open_source(images).names)


@both
def test_labels_of_a_list_are_kept(kind, images, tmp_path):
    names = list(open_source(images).names)[::-1]
    rows = [f'{name},{"odd" if i % 2 else "even"}'
            for i, name in enumerate(names)]
    table = images / 'list.csv'
    table.write_text('\n'.join(['path,label', *rows]))
    write(table, tmp_path / 'one', kind)
    table.unlink()
    write(tmp_path / 'one', tmp_path / 'two', kind)
    for out in (tmp_path / 'one', tmp_path / 'two'):
        packed = open_source(out, labels=True)
        assert list(packed.names) == names
        assert packed.classes == ['even', 'odd']
        assert packed.labels.tolist() == [0, 1] * 6
        assert packed.record(3)['gt_label'] == 1
        assert len(open_source(out)) == 12
    if kind == 'shards':
        with tarfile.open(tmp_path / 'one/shard-000000.tar') as shard:
            assert shard.extractfile('000000001.cls').read() == b'1'


@both
def test_class_folders_give_the_labels_of_a_folder(kind, images, tmp_path):
    write(images, tmp_path / 'out', kind)
    folder, packed = (open_source(p, labels=True)
                      for p in (images, tmp_path / 'out'))
    assert packed.classes == folder.classes == ['a.x', 'b']
    assert packed.labels.tolist() == folder.labels.tolist()


@both
def test_files_of_earlier_versions_are_read(kind, images, tmp_path):
    out = tmp_path / 'old'
    out.mkdir()
    names = list(open_source(images).names)
    if kind == 'store':
        with lmdb.open(str(out)) as env, env.begin(write=True) as transaction:
            for n, name in enumerate(names):
                transaction.put(b'%09d' % n, (images / name).read_bytes())
        (out / 'types.json').write_text('{"3 x uint8": 12}\n')
    else:
        webdataset = pytest.importorskip('webdataset')
        with webdataset.TarWriter(str(out / 'a.tar'), encoder=False) as tar:
            for n, name in enumerate(names):
                tar.write({'__key__': f'{n:09d}',
                           'json': json.dumps(dict(path=name)).encode(),
                           'jpg': (images / name).read_bytes()})
        with tarfile.open(out / 'a.tar') as tar:
            places = [(m.offset_data, 0, m.size) for m in tar
                      if m.name.endswith('.jpg')]
        np.save(out / 'places.npy', np.array(places, [
            ('offset', '<u8'), ('shard', '<u4'), ('size', '<u4')]))
        (out / 'shards.json').write_text(json.dumps(dict(
            version=1, images=12, root='.',
            shards=[['a.tar', 12, (out / 'a.tar').stat().st_size]])))
    (out / 'images.txt').write_text('\n'.join(names) + '\n')
    packed = open_source(out)
    assert list(packed.names) == names
    assert [packed.read(i) for i in range(12)] == [
        (images / name).read_bytes() for name in names]


def _second_header(data):
    """Return where the second file of a shard starts."""
    with tarfile.open(fileobj=io.BytesIO(data)) as shard:
        return shard.getmembers()[1].offset


def test_foreign_shards_are_indexed_in_place(images, tmp_path):
    there = tmp_path / 'there'
    write(images, tmp_path / 'own', 'shards')
    there.mkdir()
    for number in range(2):
        (there / f'{number}.tar').write_bytes(
            (tmp_path / f'own/shard-00000{number}.tar').read_bytes())
    result = write(there, tmp_path / 'index', 'shards')
    assert result['images'] == 10
    assert listing(tmp_path / 'index') == [
        'images.txt', 'places.npy', 'shards.json']
    packed = open_source(tmp_path / 'index')
    assert packed.names[9] == '1.tar/000000009.jpg'
    assert [packed.read(i) for i in range(10)] == content(
        tmp_path / 'own', 'shards')[:10]
    whole = (there / '1.tar').read_bytes()
    second = _second_header(whole)
    for damaged in (
            whole[:3000], whole[:second + 100],
            whole[:second] + b'x' * 512 + whole[second + 512:]):
        (there / '1.tar').write_bytes(damaged)
        with pytest.raises(PackError, match='1.tar cannot be read .*nothing'):
            write(there, tmp_path / 'again', 'shards')
        assert not (tmp_path / 'again').exists()


def test_shards_of_a_mac_with_links_and_masks(images, tmp_path):
    """What is not read is counted and named."""
    there, image = tmp_path / 'there', open_source(images).read(0)
    there.mkdir()
    with tarfile.open(there / 'a.tar', 'w') as shard:
        for name, data in (
                ('./._0.jpg', b'0'), ('./0.jpg', image), ('./._0.cls', b'1'),
                ('./0.cls', b'1'), ('__MACOSX/._1.jpg', b'0'),
                ('./1.jpg', image), ('./1.seg.png', image), ('./1.cls', b'0')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
        for kind, name, target in (
                (tarfile.SYMTYPE, '2.jpg', './0.jpg'),
                (tarfile.LNKTYPE, 'b/3.jpg', '1.jpg'),
                (tarfile.LNKTYPE, 'b/3.cls', './0.cls'),
                (tarfile.SYMTYPE, 'b/4.jpg', '0.jpg'),
                (tarfile.LNKTYPE, '5.jpg', './._0.jpg')):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            shard.addfile(member)
        shard.addfile(tarfile.TarInfo('2.cls'))
    said = write(there, tmp_path / 'index', 'shards')['source']
    assert '3 hidden or system files (first: a.tar/./._0.jpg)' in said
    assert '2 links (first: a.tar/b/4.jpg)' in said
    assert '4 samples, some with several' in said
    assert '1 of 5 images have no label' in said
    source = open_source(tmp_path / 'index')
    assert [source.read(i) for i in range(5)] == [image] * 5


@pytest.mark.parametrize(('texts', 'labels', 'classes'), [
    ([b'3', b'0', b'3 \n', b'10'], [3, 0, 3, 10], None),
    ([b'dog', b'cat', b'dog', b'a b'], [2, 1, 2, 0], ['a b', 'cat', 'dog']),
    ([b'3', None, b'1', b'2'], None, None),
    ([b'3', b'cat', b'1', b'2'], None, None),
    ([b'-1'] * 4, None, None),
    ([b'\xff', b'1', b'1', b'2'], 'cannot be read', None)])
def test_labels_in_shards_of_others_are_read(texts, labels, classes, tmp_path):
    """As the webdataset library writes them, which reads them, too."""
    webdataset = pytest.importorskip('webdataset')
    (tmp_path / 'there').mkdir()
    file = str(tmp_path / 'there/a.tar')
    with webdataset.TarWriter(file, encoder=False) as tar:
        for number, text in enumerate(texts):
            sample = {'__key__': f'x.d/{number}',
                      'left.png': pillow(photo(20, number), 'PNG')}
            tar.write({**sample, **({'cls': text} if text else {})})
    out = tmp_path / 'index'
    if isinstance(labels, str):
        with pytest.raises((PackError, SourceError), match=labels):
            write(tmp_path / 'there', out, 'shards')
        assert not out.exists()
        return
    result = write(tmp_path / 'there', out, 'shards')
    assert [s.get('cls') for s in webdataset.WebDataset(
        file, shardshuffle=False)] == texts
    assert f'{texts.count(None)} of 4 images have no label' in (
        result['source'])
    assert len(open_source(out)) == 4
    if labels is None:
        with pytest.raises(SourceError, match='index has no labels; add'):
            open_source(out, labels=True)
        return
    source = open_source(out, labels=True)
    assert (source.labels.tolist(), source.classes) == (labels, classes)


def test_split_of_foreign_shards(tmp_path):
    """Whose images are in no order."""
    webdataset = pytest.importorskip('webdataset')
    for split in ('train', 'val'):
        (tmp_path / f'there/{split}').mkdir(parents=True)
        with webdataset.TarWriter(str(
                tmp_path / f'there/{split}/0.tar'), encoder=False) as tar:
            for key in 'zmaqb':
                tar.write({'__key__': key, 'png': pillow(photo(20), 'PNG')})
    write(tmp_path / 'there', tmp_path / 'index', 'shards')
    for split in ('train', 'val'):
        source = open_source(tmp_path / 'index', split=split)
        assert source.split == split
        assert list(source.names) == [f'0.tar/{key}.png' for key in 'zmaqb']


@both
def test_empty_class_folders_have_a_number(kind, images, tmp_path):
    """In a store, in shards and in a split of these as in the folder."""
    for split in ('', 'train'):
        root = shutil.copytree(images, tmp_path / f'x{split}' / split)
        (root / 'aa').mkdir()
        (root / 'c/d').mkdir(parents=True)
        (root / 'c/d/notes.txt').touch()
        (root / 'b/empty').mkdir()
        out = tmp_path / f'out{split}'
        write(tmp_path / f'x{split}', out, kind)
        write(out, tmp_path / f'again{split}', kind)
        folder = open_source(root, labels=True)
        assert folder.classes == ['a.x', 'aa', 'b', 'c']
        for place in (out, tmp_path / f'again{split}'):
            packed = open_source(place, split=split, labels=True)
            assert packed.classes == folder.classes
            assert packed.labels.tolist() == folder.labels.tolist()
            assert list(packed.names) == list(folder.names)
            assert '2 of them without images (first: aa)' in packed.describe()


def test_few_shards_are_open_at_a_time(images, tmp_path):
    write(images, tmp_path / 'out', 'shards')
    backend = ShardBackend(str(tmp_path / 'out'))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr('cmae_mm.datasets.source._MOST_OPEN', 2)
        before = len(os.listdir('/proc/self/fd'))
        data = [backend.get(str(i)) for i in (0, 5, 10, 1, 0)]
        assert len(os.listdir('/proc/self/fd')) <= before + 2
    assert data[0] == data[-1] == content(tmp_path / 'out', 'shards')[0]


class _Stop(BaseException):
    """As Ctrl-C."""


@both
@pytest.mark.parametrize('after', range(0, 12, 3))
def test_interrupted_it_continues(kind, after, images, tmp_path, monkeypatch):
    """Also in the middle of a part; in the end nothing differs."""
    write(images, tmp_path / 'whole', kind)
    read, calls = pack._read, []

    def stopping(source, short_side, number, **kwargs):
        calls.append(number)
        if len(calls) > after:
            raise _Stop
        return read(source, short_side, number, **kwargs)

    monkeypatch.setattr(pack, '_read', stopping)
    out = tmp_path / 'out'
    with pytest.raises(_Stop):
        write(images, out, kind)
    done = after // 8 * 8 // 5 * 5
    assert (out / pack.PLAN_FILE).exists() == (done > 0)
    assert out.exists() == (done > 0)
    calls.clear()
    with pytest.raises(PackError if done else _Stop,
                       match='incomplete copy of other' if done else None):
        write(images, out, kind, short_side=9)
    times = {p: p.stat().st_mtime_ns for p in out.glob('*.tar')}
    monkeypatch.setattr(pack, '_read', read)
    write(images, out, kind)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    assert listing(out) == listing(tmp_path / 'whole')
    assert content(out, kind) == content(tmp_path / 'whole', kind)
    for path in out.glob('*.[tj]*'):
        assert path.read_bytes() == (tmp_path / 'whole' / path.name
                                     ).read_bytes()


def _refusals(root):
    """Invalid arguments: images, output, and the message."""
    (root / 'empty').mkdir()
    (root / 'broken').mkdir()
    for name in ('a.jpg', 'b.png', 'c.tif', 'd.npy', 'e.dcm'):
        (root / f'broken/{name}').write_bytes(b'text')
    (root / 'file').write_bytes(b'')
    (root / 'full').mkdir()
    (root / 'full/notes.txt').touch()
    (root / 'list.txt').write_text('images/b/000.jpg\nmissing.jpg\n')
    (root / 'labels.txt').write_text(
        'images/b/000.jpg cat\nimages/b/001.jpg 1\n')
    (root / 'link').symlink_to('images')
    return [
        ('empty', 'out', 'no images below'),
        ('missing', 'out', 'does not exist'),
        ('broken', 'out', 'none of the 5 images of .*broken can be read '),
        ('list.txt', 'out', 'line 2: missing.jpg does not exist'),
        ('labels.txt', 'out', 'line 2: the label .1. is a whole number'),
        ('images', 'images', 'is inside the folder of the images'),
        ('images', 'images/b/out', 'is inside the folder of the images'),
        ('images', 'link/out', 'is inside the folder of the images'),
        ('images/b', 'images', 'is not empty'),
        ('images', 'file', 'file'),
        ('images', 'file/out', 'file'),
        ('images', 'full', 'is not empty; choose another'),
        ('store', 'out2', ''), ('store', 'store', 'is inside the folder'),
        ('images', 'store', 'is already complete; delete it'),
        ('images', 'shards', 'is already complete; delete it'),
    ]


@both
def test_refusals_leave_nothing(kind, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, 'images')
    for packed in KINDS:
        write('images', packed, packed)
    for source, out, said in _refusals(tmp_path):
        before = sorted(tmp_path.rglob('*'))
        if not said:
            write(source, out, kind)
            continue
        with pytest.raises((ValueError, OSError), match=said) as error:
            write(source, out, kind)
        assert '\n' not in str(error.value)
        assert sorted(tmp_path.rglob('*')) == before, (source, out)


@both
def test_an_unreadable_file_is_named(kind, images, tmp_path, monkeypatch):
    """And what was packed before it is kept."""
    root = shutil.copytree(images, tmp_path / 'images')
    opened = open_source(root)
    bad = len(opened) - 1

    def read(self, index):
        if index == bad:
            raise OSError(5, 'Input/output error')
        return (root / self.names[index]).read_bytes()

    with monkeypatch.context() as patched:
        patched.setattr(type(opened), 'read', read)
        with pytest.raises(PackError, match=(
                r'b/004.jpg cannot be read \(Input/output error\); written '
                'files are in .*out; the same command continues')):
            write(root, tmp_path / 'out', kind)
    assert write(root, tmp_path / 'out', kind)['images'] == 12


@both
@pytest.mark.parametrize('room', [20_000, 150_000])
def test_full_disk_leaves_nothing_or_a_resumable_state(kind, room, tmp_path):
    source = tmp_path / 'images'
    source.mkdir()
    for number in range(40):
        (source / f'{number:02d}.png').write_bytes(
            pillow(noise((40, 40, 3), 'uint8', 256, number), 'PNG'))
    with small_disk(tmp_path, 1 << 20) as disk:
        free = shutil.disk_usage(disk).free
        (disk / 'other').write_bytes(bytes(free - room))
        out = disk / 'new/out'
        with pytest.raises(PackError, match='No space left') as error:
            write(source, out, kind)
        assert str(out) in str(error.value) and '\n' not in str(error.value)
        whole = listing(out)
        if room < 100_000:
            assert 'nothing was written' in str(error.value)
            assert listing(disk) == ['other']
        else:
            assert 'the same command continues' in str(error.value)
            assert {name.partition('-')[0] for name in whole} == {
                'packing.json', dict(store='data.mdb', shards='shard')[kind]}
        (disk / 'other').unlink()
        write(source, out, kind)
        assert content(out, kind) == [
            p.read_bytes() for p in sorted(source.iterdir())]
        assert 'packing.json' not in listing(out)


@both
def test_a_read_only_disk_is_refused(kind, images, tmp_path):
    with small_disk(tmp_path, 1 << 20, ',ro') as disk, pytest.raises(
            OSError, match='cannot be written: '):
        write(images, disk / 'out', kind)


@both
def test_processes_read_and_reduce(kind, tmp_path):
    """From a folder, and from what they have written."""
    source = tmp_path / 'images'
    write_images(source, 90)
    (source / '070.jpg').write_bytes(b'')
    here = write(source, tmp_path / 'here', kind, short_side=20)
    there = write(source, tmp_path / 'there', kind, short_side=20,
                  num_workers=2)
    assert here['reasons'] == there['reasons'] == {
        'undecodable': '070.jpg: it is empty'}
    copies = content(tmp_path / 'here', kind)
    assert content(tmp_path / 'there', kind) == copies
    write(tmp_path / 'there', tmp_path / 'again', 'store', num_workers=2)
    assert content(tmp_path / 'again', 'store') == copies
    (source / '080.jpg').unlink()
    (source / '080.jpg').symlink_to('080.jpg.moved')
    (source / '080.jpg.moved').write_bytes(copies[0])
    opened = open_source(source)
    (source / '080.jpg.moved').unlink()
    with pytest.raises(PackError, match='080.jpg cannot be read .No such f'):
        list(pack.map_numbers(partial(pack._read, opened, None),
                              range(90), 2))


def test_a_store_has_a_largest_size(images, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, '_MAP_SIZE', 8 * 4096)
    with pytest.raises(PackError, match=(
            'data.mdb cannot be written: .*MAP_FULL')) as error:
        write(images, tmp_path / 'out', 'store')
    assert '\n' not in str(error.value)


@both
def test_a_second_process_is_refused(kind, images, tmp_path):
    out = tmp_path / 'out'

    def hold(connection):
        with output_lock(out, is_folder=True):
            connection.send(os.getpid())
            connection.recv()

    fork = multiprocessing.get_context('fork')
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold, args=(theirs, ))
    process.start()
    pid = ours.recv()
    with pytest.raises(OutputInUse, match=f'process {pid} on'):
        write(images, out, kind)
    process.kill()  # and its lock file stays
    process.join()
    assert (out / '.lock').exists()
    assert write(images, out, kind)['images'] == 12
    assert not (out / '.lock').exists()


def _overwrite(path):
    """Damage all pages of an LMDB file but the two with its description."""
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b'\xff' * (len(data) - 8192))


@pytest.mark.parametrize('kind, damage, said', [
    ('store', lambda out: os.truncate(
        out / 'data.mdb', (out / 'data.mdb').stat().st_size // 2),
     'data.mdb.*damaged'),
    ('store', lambda out: os.truncate(out / 'data.mdb', 5000), 'data.mdb'),
    ('store', lambda out: os.truncate(out / 'data.mdb', 0), 'data.mdb'),
    ('store', lambda out: (out / 'data.mdb').write_bytes(b'text' * 5000),
     'data.mdb'),
    ('store', lambda out: (out / 'store.json').write_text('{"images"'),
     'store.json'),
    ('store', lambda out: (out / 'images.txt').write_text('a.jpg\n'),
     'images.txt'),
    ('shards', lambda out: os.truncate(out / 'shard-000001.tar', 3000),
     'shard-000001.tar has 3000 bytes instead'),
    ('shards', lambda out: (out / 'shard-000001.tar').unlink(),
     'shard-000001.tar is missing'),
    ('shards', lambda out: os.truncate(out / 'places.npy', 100),
     'places.npy'),
    ('shards', lambda out: (out / 'places.npy').write_bytes(b'text'),
     'places.npy'),
    ('shards', lambda out: (out / 'places.npy').unlink(), 'places.npy'),
    ('shards', lambda out: np.save(out / 'places.npy', np.zeros(3)),
     'places.npy'),
    ('shards', lambda out: (out / 'shards.json').write_text('[]'),
     'shards.json'),
    ('shards', lambda out: (out / 'shards.json').write_text('{"version": 1}'),
     'shards.json'),
    ('shards', lambda out: (out / 'images.txt').write_text('a.jpg\n'),
     'images.txt'),
    ('shards', lambda out: (out / 'images.txt').unlink(), 'images.txt'),
    ('shards', lambda out: (out / 'shards.json').unlink(),
     'has places.npy, but is no complete store'),
    ('store', lambda out: (out / 'images.txt').unlink(),
     'has data.mdb, but is no complete store'),
    ('store', lambda out: _overwrite(out / 'data.mdb'), 'out cannot be read'),
])
def test_damage_raises_one_sentence(kind, damage, said, images, tmp_path):
    write(images, tmp_path / 'out', kind)
    damage(tmp_path / 'out')
    names, line = in_child(
        lambda: str(open_source(tmp_path / 'out').read(3)))
    assert names == 'SourceError' and str(tmp_path / 'out') in line
    assert re.search(said, line) and '\n' not in line


@both
def test_index_with_invalid_values_raises_one_sentence(kind, images, tmp_path):
    table = images / 'list.csv'
    table.write_text('path,label\n' + ''.join(
        f'{name},{i % 3}x\n' for i, name in enumerate(
            open_source(images).names)))
    out = tmp_path / 'out'
    write(table, out, kind)
    table.unlink()
    path = out / ('shards.json' if kind == 'shards' else 'store.json')
    index = json.loads(path.read_text())
    source = open_source(out, labels=True)
    ShardBackend(str(out)) if kind == 'shards' else None
    wrong = (None, 0, -1, 7, 1.5, True, 'x', '', [], [1], ['x'], [[]], {},
             [['x', 1]], [['x', 1, 2]], [[1, 'y', None]], {'a': 1}, 'NaN')
    trials = [json.dumps({**index, key: value})
              for key in index for value in wrong]
    trials += [json.dumps({k: index[k] for k in index if k != key})
               for key in index]
    refused = 0
    for text in (*trials, *map(json.dumps, wrong), '[' * 100_000, '\0'):
        path.write_text(text)
        try:
            found = open_source(out, labels=True, split='x')
            assert found.names[3] == source.names[3]
            if kind == 'shards':
                ShardBackend(str(out)).get('3')
        except SourceError as error:
            assert '\n' not in str(error) and str(out) in str(error), text
            refused += 1
    assert refused > len(wrong)


def in_child(function):
    """Call a function in a process that a signal may end."""
    fork = multiprocessing.get_context('fork')
    ours, theirs = fork.Pipe()

    def call():
        try:
            theirs.send(('', function()))
        except Exception as error:
            theirs.send((type(error).__name__, str(error)))

    process = fork.Process(target=call)
    process.start()
    process.join()
    assert process.exitcode == 0
    return ours.recv()


# Files, and the channels and type of each.
LOSSLESS = {
    'five.tif': (tiff(noise((60, 80, 5))), 5, 'uint16'),
    'grey.png': (pillow(noise((60, 80)), 'PNG'), 1, 'uint16'),
    'colour.png': (opencv(noise((60, 80, 3)), '.png'), 3, 'uint16'),
    'float.npy': (numpy(noise((60, 80, 4), 'float32') / 4096), 4, 'float32'),
    'alpha.png': (pillow(noise((60, 80, 4), 'uint8', 256), 'PNG'), 4,
                  'uint8'),
    'alpha.webp': (pillow(noise((60, 80, 4), 'uint8', 256), 'WEBP',
                          lossless=True, exact=True), 4, 'uint8'),
    'grey alpha.png': (pillow(noise((60, 80, 2), 'uint8', 256), 'PNG'), 2,
                       'uint8'),
    'deep alpha.png': (opencv(noise((60, 80, 4)), '.png'), 4, 'uint16'),
    'rgb.bmp': (pillow(noise((60, 80, 3), 'uint8', 256), 'BMP'), 3, 'uint8'),
    'rgb.tif': (pillow(noise((60, 80, 3), 'uint8', 256), 'TIFF'), 3,
                'uint8'),
    'infra-red.tif': (tiff(noise((60, 80, 4), 'uint8', 256)), 4, 'uint8'),
    'big-endian.npy': (numpy(noise((60, 80, 3), '>u2')), 3, 'uint16'),
    'palette.png': (pillow(Image.fromarray(photo(70)).quantize(), 'PNG'), 3,
                    'uint8'),
}


@pytest.mark.parametrize('name', LOSSLESS)
def test_smaller_copies_have_the_pixels_of_shrinking_in_memory(name):
    """Type, channels and alpha stay: for all settings of decoding."""
    data, channels, dtype = LOSSLESS[name]
    packed = shrink(data, 30, name)
    assert packed.how in ('re-encoded as PNG', 're-encoded as TIFF')
    for wanted in {channels, channels - (channels in (2, 4))}:
        wanted = make_settings(channels=wanted, dtype=dtype)
        try:
            before = decode_image(data, None, wanted, name)
        except ValueError as error:  # infra-red is not left out
            with pytest.raises(type(error)):
                decode_image(packed.data, None, wanted, name)
            continue
        after = decode_image(packed.data, None, wanted, name)
        expected = resize_image(before, after.shape[:2])
        assert after.shape[:2] in ((30, 40), (30, 30))
        assert after.dtype == dtype and (after == expected).all()
    assert shrink(data, 70, name).data == data


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(2, 30), st.integers(2, 30), st.integers(1, 7)),
       st.sampled_from(['uint8', 'uint16', 'float32']), st.booleans(),
       st.integers(1, 12), st.integers(0, 99))
def test_copies_of_any_shape_are_read_by_tifffile(shape, dtype, alpha, side,
                                                  seed):
    array = noise(shape, dtype, 256, seed)
    if dtype == 'uint16':  # not 8 bits
        array += 256
    alpha = alpha and shape[2] in (2, 4)
    kwargs = dict(photometric='minisblack', planarconfig='contig',
                  metadata=None)
    if alpha:
        kwargs['extrasamples'] = ['unassalpha']
        if shape[2] == 4:
            kwargs['photometric'] = 'rgb'
    if shape[2] == 1:
        array, kwargs = array[..., 0], dict(photometric='minisblack')
    packed = shrink(tiff(array, **kwargs), side, 'a.tif')
    if min(shape[:2]) <= side:
        assert packed.how == 'copied'
        return
    if packed.how == 're-encoded as PNG':
        found = np.asarray(Image.open(io.BytesIO(packed.data)))
    else:
        found = tifffile.imread(io.BytesIO(packed.data))
    found = found.reshape(*found.shape[:2], -1)
    assert min(found.shape[:2]) == side
    expected = resize_image(array.reshape(shape), found.shape[:2])
    assert found.dtype == dtype and (found == expected).all()


@pytest.mark.parametrize('factor', [1, 256, 257])
def test_copies_of_8_bits_in_16_are_8_bits(factor):
    narrow = noise((60, 80, 3), 'uint8', 256)
    data = opencv(narrow.astype('uint16') * factor, '.png')
    packed = shrink(data, 30, 'a.png')
    expected = resize_image(narrow, (30, 40))
    for dtype, times in (('uint8', 1), ('uint16', factor)):
        wanted = make_settings(channels=3, dtype=dtype)
        found = decode_image(packed.data, None, wanted, 'a.png')
        found = found[..., ::-1] if dtype == 'uint8' else found
        assert (found == expected.astype('uint16') * times).all()


def test_jpeg_files_become_jpeg_files():
    """Upright, of the size asked for, grey ones grey, CMYK left alone."""
    array = np.asarray(Image.fromarray(photo(90)).resize((90, 60)))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for side in (30, 45, 20):  # a half, too: as libjpeg decodes by itself
        data = pillow(array, 'JPEG', quality=95, exif=rotated)
        copy = shrink(data, side, 'a.jpg')
        assert copy.how == 're-encoded as JPEG'
        image = Image.open(io.BytesIO(copy.data))
        assert image.format == 'JPEG' and not image.getexif()
        assert image.size == (side, round(side * 1.5))
        expected = np.rot90(array, -1)
        expected = np.asarray(Image.fromarray(expected).resize(image.size))
        assert np.abs(np.asarray(image).astype(int) - expected).mean() < 4
    grey = shrink(pillow(array[..., 0], 'JPEG'), 30, 'b.jpg')
    assert Image.open(io.BytesIO(grey.data)).mode == 'L'
    cmyk = pillow(Image.fromarray(array).convert('CMYK'), 'JPEG')
    assert shrink(cmyk, 30, 'c.jpg')[1:4] == (cmyk, 'not reduced',
                                              'it is in CMYK')


@both
def test_images_that_were_not_reduced_are_counted(kind, tmp_path):
    source = tmp_path / 'images'
    source.mkdir()
    holes = noise((60, 80), 'float32')
    holes[3, 4] = np.nan
    files = {
        'a.jpg': pillow(photo(60), 'JPEG'), 'b.png': pillow(photo(60), 'PNG'),
        'c.tif': LOSSLESS['five.tif'][0], 'd.jpg': pillow(photo(20), 'JPEG'),
        'e.jpg': b'text', 'f.npy': numpy(holes),
        'g.npy': numpy(noise((60, 80), 'int16')),
        'h.tif': tiff(noise((3, 60, 80)), metadata=None,
                      photometric='minisblack'),
        'i.jpg': pillow(photo(60), 'JPEG')[:700]}
    for name, data in files.items():
        (source / name).write_bytes(data)
    result = write(source, tmp_path / 'out', kind, short_side=30)
    assert result['copies'] == {
        'not reduced': 3, 'undecodable': 2, 're-encoded as JPEG': 1,
        're-encoded as PNG': 1, 're-encoded as TIFF': 1, 'copied': 1}
    assert set(result['reasons']) == {'undecodable', 'not reduced'}
    assert result['reasons']['undecodable'].startswith('e.jpg: ')
    assert result['reasons']['not reduced'] == 'f.npy: it has missing pixels'
    copies = content(tmp_path / 'out', kind)
    for number in (3, 4, 5, 6, 7, 8):
        assert copies[number] == list(files.values())[number]
    if kind == 'shards':  # endings are those of the content
        with tarfile.open(tmp_path / 'out/shard-000000.tar') as shard:
            assert '000000001.png' in shard.getnames()


def test_commands_print_a_summary(images, tmp_path):
    (images / 'x.exr').write_bytes(b'')
    lines = [
        ['store', images, 'out', '--short-side', '9', '--json'],
        ['shards', 'out', 'out2', '--images-per-shard', '5', '--json'],
        ['store', images, 'out'],
        ['shards', tmp_path, 'out2/new'],
        ['store', 'nowhere', 'new'],
        ['train', ROOT / 'configs/quickstart/cmae_vit-mini_tiles.py',
         '--work-dir', 'work', '--cfg-options',
         'train_dataloader.batch_size=4', 'train_dataloader.num_workers=1',
         f'train_dataloader.dataset.data_root={tmp_path / "out2"}',
         'train_cfg.max_iters=2'],
    ]
    *results, (code, trained) = run_commands(*lines, cwd=tmp_path)
    (images / 'x.exr').unlink()
    assert code == 0 and (tmp_path / 'work/iter_2.pth').exists(), trained
    shutil.rmtree(tmp_path / 'work')
    assert [code for code, _ in results] == [0, 0, 1, 1, 1], results
    stored = json.loads(results[0][1].splitlines()[-1])
    assert stored['copies'] == {'re-encoded as JPEG': 11, 'copied': 1}
    for said in ('12 images in', 'skipped: 1 .exr',
                 '12 images in out', '11 re-encoded as JPEG'):
        assert said in results[0][1]
    assert len(json.loads(results[1][1].splitlines()[-1])['shards']) == 3
    assert 'is already complete' in results[2][1]
    assert 'is inside the folder of the images' in results[3][1]
    assert all(len(said.splitlines()) == 1 for _, said in results[2:])
    assert listing(tmp_path) == ['out', 'out2']


def test_ctrl_c_prints_how_to_continue(tmp_path):
    source, out = tmp_path / 'images', tmp_path / 'out'
    source.mkdir()
    data = pillow(noise((900, 900, 3), 'uint8', 256), 'PNG')
    for number in range(120):
        (source / f'{number:03d}.png').write_bytes(data)
    command = [sys.executable, '-m', 'cmae_mm', 'shards', str(source),
               str(out), '--short-side', '600', '--images-per-shard', '1']
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE,
                               text=True)
    while not list(out.glob('shard-*.tar')) and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130
    assert said.splitlines()[-1] == (
        f'cmae shards: stopped; {out} contains an incomplete copy; the same '
        'command continues')
    assert not list(out.glob('.*'))
