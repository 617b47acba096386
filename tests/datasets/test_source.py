"""Listing of images: the same for every command, skipped files reported."""
import os
import socket
import stat

import numpy as np
import pytest
from helpers import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmae_mm.datasets import LabelledDataset, PretrainingDataset
from cmae_mm.datasets.names import decode_name, encode_name
from cmae_mm.datasets.pack import pack_images
from cmae_mm.datasets.source import IMG_EXTENSIONS, SourceError, open_source

SYSTEM = ('.ipynb_checkpoints', '__MACOSX', '@eaDir', '$RECYCLE.BIN',
          'lost+found', '.git', 'System Volume Information')
# Characters at which str.splitlines splits, and others that break formats.
AWKWARD = '\n\r\t\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029 ,;"\'\\%#\ufeff\udce9ä猫'
NAMES = st.text(st.sampled_from(AWKWARD + 'ab'), min_size=1, max_size=6)


def walk(root):
    """List the images below a folder by os.walk; there are no links."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f[0] != '.' and f not in SYSTEM]
        for name in files:
            path = os.path.join(folder, name)
            if (name[0] != '.' and name.lower().endswith(IMG_EXTENSIONS)
                    and stat.S_ISREG(os.stat(path).st_mode)):
                found.append(os.path.relpath(path, root))
    return sorted(found)


@given(st.text(st.characters(), max_size=12).filter(lambda s: '\0' not in s)
       | NAMES)
@settings(max_examples=300, deadline=None)
def test_encoded_names_are_one_line_and_come_back(name):
    if any('\ud800' <= c <= '\udfff' for c in name):
        try:  # what no file system has
            assert os.fsdecode(os.fsencode(name)) == name
        except (UnicodeEncodeError, AssertionError):
            return
    text = encode_name(name)
    assert decode_name(text) == name
    assert len(f'{text}.'.splitlines()) == 1 and text.strip() == text
    text.encode('utf-8')
    if name.isidentifier() and name.isascii():
        assert text == name


def test_ordinary_names_stay_as_they_are():
    for name in ('a/b c.jpg', 'ü.jpg', 'a#b%20.jpg', 'back\\slash.jpg',
                 "quote'\".jpg", '猫.jpg', 'comma,3.jpg'):
        assert encode_name(name) == name
    assert encode_name('line\nbreak.jpg') == '"line\\nbreak.jpg"'
    assert encode_name(os.fsdecode(b'\xe9.jpg')) == '"\\udce9.jpg"'


@pytest.fixture
def messy(tmp_path):
    """A folder with files of many kinds."""
    root = tmp_path / 'photos'
    write_images(root / 'cat', 2)
    write_images(root / 'Dog', 1)
    write_images(tmp_path / 'elsewhere/birds', 2)
    for name in SYSTEM:
        write_images(root / name, 1)
    image = (root / 'cat/000.jpg').read_bytes()
    for name in ('x.EXR', 'y.exr', 'z.xcf', 'notes.txt', '1.2.840.113',
                 'IM-0001', 'a.jfif', 'b.JPE', '._a.jpg', '.hidden.jpg',
                 'Thumbs.db', '.DS_Store', 'line\nbreak.jpg'):
        (root / name).write_bytes(image)
    (root / 'link.jpg').symlink_to(root / 'cat/000.jpg')
    (root / 'gone.jpg').symlink_to(root / 'nowhere.jpg')
    (root / 'self.jpg').symlink_to(root / 'self.jpg')
    (root / 'birds').symlink_to(tmp_path / 'elsewhere/birds')
    (root / 'again').symlink_to(tmp_path / 'elsewhere/birds')
    (root / 'kitten').symlink_to(root / 'cat')
    (root / 'Dog/loop').symlink_to(root)
    (root / 'Dog/up').symlink_to(tmp_path)
    (tmp_path / 'elsewhere/birds/back').symlink_to(root)
    os.mkfifo(root / 'fifo.jpg')
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.getcwd()
        os.chdir(root)
        try:
            opened.bind('socket.png')
        finally:
            os.chdir(here)
    return root


def test_listed_and_skipped_files(messy):
    source = open_source(messy)
    assert list(source.names) == [
        'Dog/000.jpg', 'a.jfif', 'again/000.jpg', 'again/001.jpg', 'b.JPE',
        'cat/000.jpg', 'cat/001.jpg', 'line\nbreak.jpg', 'link.jpg']
    assert source.kind == 'folder' and source.root == str(messy)
    said = source.describe()
    assert said.startswith(f'9 images in {messy}; skipped: 2 .exr, ')
    assert '\n' not in said
    for part in ('1 .xcf', '1 .txt', '2 other files (first: 1.2.840.113)',
                 '11 hidden or system files (first: ', '2 dangling links (',
                 '3 circular links (first: Dog/loop)', '2 special files (',
                 '2 repeated folders (first: '):
        assert part in said, (part, said)
    for index, name in enumerate(source.names):
        assert source.path(index) == str(messy / name)
        assert source.read(index) == (messy / name).read_bytes()
        assert source[index] == dict(img_path=str(messy / name))


def test_labels_are_of_visible_folders_in_sorted_order(messy):
    (messy / '10').mkdir()
    (messy / '9').mkdir()
    (messy / 'cat ').mkdir()
    source = open_source(messy, labels=True)
    assert source.classes == ['10', '9', 'Dog', 'again', 'birds', 'cat',
                              'cat ', 'kitten'][:4] + ['cat', 'cat ']
    assert [(name, source.classes[label])
            for name, label in zip(source.names, source.labels)] == [
        ('Dog/000.jpg', 'Dog'), ('again/000.jpg', 'again'),
        ('again/001.jpg', 'again'), ('cat/000.jpg', 'cat'),
        ('cat/001.jpg', 'cat')]
    assert '4 unlabelled images (first: a.jfif)' in source.describe()
    assert 'of 6 classes; 3 of them without images (first: 10)' in (
        source.describe())
    dataset = LabelledDataset(data_root=str(messy))
    assert dataset.metainfo['classes'] == tuple(source.classes)
    assert dataset.get_data_info(3)['gt_label'] == source.labels[3]
    with pytest.raises(SourceError, match=r'classes of .* are \['):
        LabelledDataset(data_root=str(messy), classes=['cat', 'dog'])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_images(tmp_path / 'a', 1)
    write_images(tmp_path / 'b', 1)
    real = os.scandir

    def scandir(path):
        if str(path).rstrip('/').endswith('/b'):
            raise PermissionError(13, 'Permission denied', path)
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    source = open_source(tmp_path)
    assert list(source.names) == ['a/000.jpg']
    assert source.describe().endswith('skipped: 1 unreadable folder (b)')


def test_features_of_images_are_no_image(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((8, 8), np.uint8))
    np.savez(tmp_path / 'b.npz', image=np.zeros((8, 8), np.uint8))
    np.savez(tmp_path / 'f.npz', features=np.zeros((2, 3)), paths=['a', 'b'])
    source = open_source(tmp_path)
    assert list(source.names) == ['a.npy', 'b.npz']
    assert 'skipped: 1 feature file (f.npz)' in source.describe()


def test_only_regular_files_are_read(tmp_path):
    write_images(tmp_path, 1)
    source = open_source(tmp_path)
    (tmp_path / '000.jpg').unlink()
    os.mkfifo(tmp_path / '000.jpg')
    with pytest.raises(OSError, match='is not a regular file.*000.jpg'):
        source.read(0)
    with pytest.raises(FileNotFoundError, match='not a regular file but a'):
        open_source(tmp_path / '000.jpg')


def test_empty_folders_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist; use'):
        open_source(tmp_path / 'none')
    (tmp_path / 'a.tar').touch()
    with pytest.raises(SourceError,
                       match='no images .*`cmae shards`.*skipped: 1 .tar'):
        open_source(tmp_path)


# A tree as a list of paths; a part that ends in '>' is a link.
PARTS = st.sampled_from(['a', 'b', 'a-a', 'A', '.c', '__MACOSX', ' d', 'e\n'])
FILES = st.sampled_from(['a.jpg', 'b.PNG', '.h.jpg', 'c.txt', 'd', 'e\x85.tif',
                         'f\u2028.webp', '"g".jpe', 'h .jfif', 'Thumbs.db'])


@given(st.lists(st.tuples(st.lists(PARTS, max_size=3), FILES), min_size=1,
                max_size=10))
@settings(max_examples=60, deadline=None)
def test_every_folder_is_listed_as_os_walk_lists_it(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp('tree')
    for folders, name in paths:
        folder = root.joinpath(*folders)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    expected = walk(root)
    if not expected:
        with pytest.raises(SourceError, match='no images'):
            open_source(root)
        return
    source = open_source(root)
    assert list(source.names) == expected
    # A link to the folder, and links to all there is in it, give the same.
    link = root.with_name(f'{root.name}_link')
    link.symlink_to(root)
    assert list(open_source(link).names) == expected
    links = root.with_name(f'{root.name}_links')
    links.mkdir()
    for entry in root.iterdir():
        (links / entry.name).symlink_to(entry)
    assert list(open_source(links).names) == expected


def test_many_links_do_not_multiply(tmp_path):
    """Two links a level to the next: 2 to the power of 30 paths."""
    for level in range(30):
        folder = tmp_path / f'level{level}'
        folder.mkdir()
        for name in 'ab':
            (folder / name).symlink_to(tmp_path / f'level{level + 1}')
    write_images(tmp_path / 'level30', 1)
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root/start').symlink_to(tmp_path / 'level0')
    source = open_source(tmp_path / 'root')
    assert list(source.names) == [f'start{"/a" * 30}/000.jpg']
    assert '30 repeated folders' in source.describe()


@pytest.fixture
def listed(tmp_path):
    """A folder of images with awkward names, to be listed."""
    for name in ('cat/0.jpg', 'dog/0.jpg', 'my cat.jpg', 'a,b.jpg',
                 'line\nbreak.jpg', '"quoted" x.jpg', ' space.jpg', 'IM1'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, 'JPEG')
    return tmp_path


LISTS = {
    'paths': ('cat/0.jpg\n\ndog/0.jpg\r\n  \nmy cat.jpg\nIM1\n',
              ['cat/0.jpg', 'dog/0.jpg', 'my cat.jpg', 'IM1'], None),
    'bom': ('\ufeffcat/0.jpg\ndog/0.jpg', ['cat/0.jpg', 'dog/0.jpg'], None),
    'encoded': ('"line\\nbreak.jpg"\n"\\"quoted\\" x.jpg"\n" space.jpg"\n',
                ['line\nbreak.jpg', '"quoted" x.jpg', ' space.jpg'], None),
    'numbers': ('cat/0.jpg 3\ndog/0.jpg 10\nmy cat.jpg  3\n'
                '"line\\nbreak.jpg" 0\n',
                ['cat/0.jpg', 'dog/0.jpg', 'my cat.jpg', 'line\nbreak.jpg'],
                [3, 10, 3, 0]),
    'names': ('my cat.jpg cat\ncat/0.jpg cat\ndog/0.jpg\tbig dog\nIM1 cat\n',
              ['my cat.jpg', 'cat/0.jpg', 'dog/0.jpg', 'IM1'],
              ['cat', 'cat', 'big dog', 'cat']),
    'csv': ('Image,label\ncat/0.jpg,cat\n"a,b.jpg","big, dog"\n',
            ['cat/0.jpg', 'a,b.jpg'], ['cat', 'big, dog']),
    'more': ('id;class_name;File Name;split\r\n1;x;cat/0.jpg;train\r\n'
             '2;y;"line\nbreak.jpg";train\r\n3;y;dog/0.jpg;val\r\n',
             ['cat/0.jpg', 'line\nbreak.jpg', 'dog/0.jpg'], ['x', 'y', 'y']),
    'tsv': ('\ufeffpath\tlabel\nmy cat.jpg\t1.0\nIM1\t0.0\n',
            ['my cat.jpg', 'IM1'], [1, 0]),
}


@pytest.mark.parametrize('kind', LISTS)
def test_lists_of_all_kinds(kind, listed):
    text, names, labels = LISTS[kind]
    path = listed / 'list.txt'
    path.write_bytes(text.encode())
    source = open_source(path)
    assert source.kind == 'list' and list(source.names) == names
    assert source.labels is None
    assert [source[i] for i in range(len(source))] == [
        dict(img_path=str(listed / name)) for name in names]
    for index in range(len(names)):
        assert Image.open(source.path(index)).size == (8, 8)
    # Elsewhere, with absolute paths and with the folder named.
    (listed / 'lists').mkdir()
    other = listed / 'lists/list.txt'
    other.write_bytes(text.encode())
    with pytest.raises(SourceError, match=r'line \d: .* does not exist.*rela'):
        open_source(other)
    assert list(open_source(other, root=str(listed)).names) == names
    dataset = PretrainingDataset(data_root=str(listed), split='',
                                 ann_file='lists/list.txt')
    assert list(dataset.source.names) == names
    if labels is None:
        with pytest.raises(SourceError, match='has no labels'):
            open_source(path, labels=True)
        return
    source = open_source(path, labels=True)
    found = source.labels.tolist()
    if source.classes is not None:
        assert source.classes == sorted(set(labels))
        found = [source.classes[i] for i in found]
    assert found == labels
    dataset = LabelledDataset(data_root=str(listed), ann_file='list.txt')
    assert [dataset.get_data_info(i)['gt_label']
            for i in range(len(dataset))] == source.labels.tolist()


def test_rows_without_a_label(listed, tmp_path_factory):
    """Pre-training takes all rows, evaluations the labelled ones."""
    path = listed / 'list.csv'
    path.write_text('path,label\ncat/0.jpg,a\ndog/0.jpg,NaN\nIM1,b\n')
    assert list(open_source(path).names) == ['cat/0.jpg', 'dog/0.jpg', 'IM1']
    source = open_source(path, labels=True)
    assert list(source.names) == ['cat/0.jpg', 'IM1']
    assert source.classes == ['a', 'b'] and source.labels.tolist() == [0, 1]
    assert 'skipped: 1 rows without a label' in source.describe()
    out = tmp_path_factory.mktemp('packed') / 'store.lmdb'
    index = pack_images(path, out)
    assert len(open_source(out)) == 3
    assert 'labels are not read, since 1 rows have none' in index['source']
    path.write_text('path,label\ncat/0.jpg,\nIM1,\n')
    assert len(open_source(path)) == 2
    with pytest.raises(SourceError, match='has no labels'):
        open_source(path, labels=True)


def test_a_split_column(listed):
    path = listed / 'list.csv'
    path.write_text('path,split\ncat/0.jpg,Train\ndog/0.jpg,val\n')
    assert len(open_source(path)) == 2
    assert list(PretrainingDataset(data_root=str(path)).source.names) == [
        'cat/0.jpg']
    assert list(open_source(path, split='val').names) == ['dog/0.jpg']
    with pytest.raises(SourceError, match="no rows of the split test or "
                       'testing, but of train, val'):
        open_source(path, split='test')


def test_parts_have_the_same_names_in_all_sources(listed, tmp_path):
    """`training`, `Valid`: in a table, a folder and a store."""
    listed = listed.rename(tmp_path.parent / f'{tmp_path.name}_images')
    (listed / 'cat').rename(listed / 'Training')
    (listed / 'dog').rename(listed / 'valid')
    pack_images(listed, tmp_path / 'store')
    pack_images(listed, tmp_path / 'shards', 'shards')
    for name in ('car', 'splits'):  # the latter of `cmae splits`
        (listed / name).mkdir()
    assert '1 other folders beside it are not read (first: car)' in (
        open_source(listed, split='train').describe())
    table = listed / 'list.csv'
    table.write_text('path,split\nTraining/0.jpg,Training\n'
                     'valid/0.jpg,valid\n')
    for data in (listed, table, tmp_path / 'store', tmp_path / 'shards'):
        for split, found in (('train', 'training'), ('val', 'valid')):
            source = open_source(data, split=split)
            assert len(source) == 1 and source.split.lower() == found
            assert source.read(0) == (
                listed / found.title() / '0.jpg' if split == 'train' else
                listed / found / '0.jpg').read_bytes()


@pytest.mark.parametrize('text, named', [
    ('cat/0.jpg\nnone.jpg\n', 'line 2: none.jpg does not exist .*; paths are'),
    ('cat/0.jpg\n\n\ncat\n', 'line 4: cat is a folder'),
    ('cat\\0.jpg\n', 'line 1: .* .1 of 1 lines .*; write / in place'),
    ('cat/0.jpg\ndog/0.jpg 1\n', 'line 2: dog/0.jpg 1 does not exist .*; it '
     'has a label, but the first line has none'),
    ('cat/0.jpg 0\n\ndog/0.jpg\n', 'line 3: expected 2 columns with a path '
     'and a label, but the line is'),
    ('cat/0.jpg 0\ndog/0.jpg cat\n', "line 2: the label 'cat' is not a whole"),
    ('cat/0.jpg cat\ndog/0.jpg 1\n', "line 2: the label '1' is a whole"),
    ('cat/0.jpg 0\ndog/0.jpg -1\n', "line 2: the label '-1' is neither a"),
    ('path,label\ncat/0.jpg,1.5\n', "line 2: the label '1.5' is neither a"),
    ('~/cat.jpg\n', 'line 1: ~/cat.jpg does not exist .* ~ is not replaced'),
    ('https://a.b/c.jpg\n', 'line 1: .*addresses are not read'),
    ('{"path": "cat/0.jpg"}\n', 'line 1: .*JSON is not read; write a CSV'),
    ('cat/0.jpg,0\n', 'line 1: .*a table needs a first line'),
    ('PK\0\1\n', 'is not a text file'),
    ('cat/0.jpg 0\ndog/0.jpg 0 1\n', 'line 2: dog/0.jpg 0 does not exist'),
    ('# a comment\ncat/0.jpg\n', 'line 1: # a does not exist|line 1: # a co'),
    ('path,label\ncat/0.jpg,0\ndog/0.jpg\n', 'line 3: expected 2 columns'),
    ('path,label\ncat/0.jpg,0,1\n', 'line 2: expected 2 columns'),
    ('path,label\n,1\n', 'line 2: expected .* a path'),
    ('path,label\n"a\nb.jpg",1\ncat/0.jpg,1\n', 'line 2: "a.nb.jpg" does not'),
    ('path,label\n"cat/0.jpg,1\n', 'line 2: unexpected end of data'),
    ('path,label\n', 'has no rows'),
    ('\n \n', 'lists no images'),
    ('', 'lists no images'),
    ('what,ever\ncat/0.jpg,1\n', 'line 1: what,ever does not exist'),
])
def test_a_wrong_line_is_named(text, named, listed):
    path = listed / 'list.txt'
    path.write_text(text)
    with pytest.raises(SourceError, match=named):
        open_source(path, labels='0' in text and ' ' in text.split('\n')[0]
                    and text[0] not in '#{' or 'path,label' in text)


def test_a_table_without_a_header_is_refused(listed):
    (listed / 'list.csv').write_text('cat/0.jpg,0\n')
    with pytest.raises(SourceError, match='must contain the column names'):
        open_source(listed / 'list.csv')


def test_a_wrong_line_among_many_is_found_in_a_second(listed):
    path = listed / 'list.txt'
    path.write_text('cat/0.jpg\n' * 50_000 + 'gone.jpg\n'
                    + 'cat/0.jpg\n' * 40_000)
    with pytest.raises(SourceError, match='line 50001: gone.jpg does not'):
        PretrainingDataset(data_root=str(listed), ann_file='list.txt')
    path.write_text('cat/0.jpg\n' * 200_000)
    source = open_source(path)
    assert len(source) == 200_000
    assert source.describe().endswith('100,000 of the files were checked')


@given(st.lists(NAMES.filter(lambda n: '/' not in n and '\0' not in n),
                min_size=1, max_size=6, unique=True))
@settings(max_examples=30, deadline=None)
def test_a_list_written_with_encoded_names_gives_the_folder(
        tmp_path_factory, names):
    root = tmp_path_factory.mktemp('odd')
    for name in names:
        (root / f'x{name}.jpg').touch()
    folder = open_source(root)
    assert list(folder.names) == walk(root)
    encoded = [encode_name(name) for name in folder.names]
    (root / 'list.txt').write_text('\n'.join(encoded))
    assert list(open_source(root / 'list.txt').names) == list(folder.names)
    (root / 'list.txt').write_text(
        ''.join(f'{name} {i}\n' for i, name in enumerate(encoded)))
    source = open_source(root / 'list.txt', labels=True)
    assert list(source.names) == list(folder.names)
    assert source.labels.tolist() == list(range(len(encoded)))


@pytest.mark.parametrize('names, noted', [
    (['Cat', 'cat'], 'the classes Cat and cat differ in case only'),
    (['cat', 'dog'], '')])
def test_classes_that_differ_in_case_only_are_noted(names, noted, tmp_path):
    for name in names:
        write_images(tmp_path / name, 1)
    source = open_source(tmp_path, labels=True)
    assert source.classes == sorted(names)
    assert ('differ in case' in source.describe()) == bool(noted)
    assert noted in source.describe()
