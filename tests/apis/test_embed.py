"""Features of folders of images."""
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_images
from mmengine.config import Config
from mmpretrain.registry import MODELS

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.checkpoints import load_encoder_into
from cmae_mm.datasets.names import decode_name, encode_name
from cmae_mm.datasets.pack import pack_images
from cmae_mm.evaluation import features as extraction
from cmae_mm.evaluation.feature_files import FeatureFile, FeatureFileError
from cmae_mm.evaluation.features import FrozenFeatures
from cmae_mm.files import OutputInUse, output_lock


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp('labelled')
    for split in ('train', 'val'):
        for label in range(2):
            write_images(root / split / f'class{label}', 3, size=90,
                         seed=label)
    return root


@pytest.fixture
def folder(photos, tmp_path) -> Path:
    """The photographs, and two files that are none."""
    shutil.copytree(photos, tmp_path / 'photos')
    (tmp_path / 'photos/a/broken.jpg').write_bytes(b'\xff\xd8 no image')
    (tmp_path / 'photos/empty.png').touch()
    return tmp_path / 'photos'


@pytest.mark.parametrize('pool, encoder', [
    ('mean', 'online'), ('cls', 'online'), ('mean', 'target')])
def test_features_are_those_of_the_evaluation(
        pretrained, labelled, pool, encoder, tmp_path):
    cfg = Config.fromfile(str(pretrained.config))
    cfg.train_dataloader.dataset.data_root = str(labelled)
    cfg.work_dir = str(tmp_path)
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    part = model.target.encoder if encoder == 'target' else model.backbone
    load_encoder_into(part, str(pretrained.checkpoint), encoder)
    features, labels = FrozenFeatures(
        model, cfg, encoder, pool, batch_size=4,
        num_workers=0).extract('train')
    found = cmae_mm.embed(labelled / 'train', pretrained.checkpoint,
                          pool=pool, encoder=encoder, batch_size=4,
                          num_workers=0)
    assert [int(p[5]) for p in found.paths] == labels.tolist()
    # CMAE embeds patches by a matrix product, others by a convolution.
    np.testing.assert_allclose(
        found.features, features.numpy(), rtol=1e-5, atol=1e-5)


def test_unreadable_images_are_skipped_and_listed(
        pretrained, folder, photos, tmp_path, capsys):
    found = cmae_mm.embed(folder, pretrained.checkpoint, tmp_path / 'f.npz',
                          num_workers=1, batch_size=3)
    assert '\nskipped: a/broken.jpg cannot be decoded' in (
        capsys.readouterr().out)
    assert set(found.skipped) == {'a/broken.jpg', 'empty.png'}
    assert 'a/broken.jpg cannot be decoded' in found.skipped['a/broken.jpg']
    listed = (tmp_path / 'f.npz.skipped.txt').read_text().splitlines()
    assert [line.split('\t')[0] for line in listed] == list(found.skipped)
    whole = cmae_mm.embed(photos, pretrained.checkpoint, num_workers=0)
    with np.load(tmp_path / 'f.npz') as written:
        assert written['paths'].tolist() == found.paths == whole.paths
        assert written['skipped'].tolist() == list(found.skipped)
        np.testing.assert_allclose(
            written['features'], whole.features, atol=1e-5)
    for path in folder.rglob('0*.jpg'):
        path.unlink()
    with pytest.raises(ValueError, match='none of the 2 images could be read'):
        cmae_mm.embed(folder, pretrained.checkpoint, num_workers=0)
    with pytest.raises(ValueError, match='none of the 2 images could be read'):
        cmae_mm.embed(folder, pretrained.checkpoint, tmp_path / 'g.npz',
                      num_workers=0)


def test_interrupted_embedding_resumes(
        pretrained, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, '_PART_SECONDS', 0.)
    compute, seen = extraction._features, []

    def interrupted(model, images, dtype):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(images))
        return compute(model, images, dtype)

    options = dict(batch_size=3, num_workers=0, dtype='float16')
    once = cmae_mm.embed(folder, pretrained.checkpoint, tmp_path / 'once.npz',
                         **options)
    monkeypatch.setattr(extraction, '_features', interrupted)
    out = tmp_path / 'f.npz'
    with pytest.raises(KeyboardInterrupt):
        cmae_mm.embed(folder, pretrained.checkpoint, out, **options)
    assert not out.exists()
    with pytest.raises(FeatureFileError, match="begun with pool 'mean' instead"
                       " of 'cls'; choose another .*or delete .*f.npz.part"):
        cmae_mm.embed(folder, pretrained.checkpoint, out, pool='cls',
                      **options)
    counted = []
    monkeypatch.setattr(
        extraction, '_features',
        lambda *args: counted.append(len(args[1])) or compute(*args))
    again = cmae_mm.embed(folder, pretrained.checkpoint, out, **options)
    assert sum(seen) + sum(counted) == 8
    assert again.paths == once.paths and again.skipped == once.skipped
    with np.load(out) as a, np.load(tmp_path / 'once.npz') as b:
        assert a['features'].dtype == np.float16
        assert np.array_equal(a['features'], b['features'])
    assert not list(tmp_path.glob('*.parts'))


def test_complete_file_is_kept(pretrained, photos, tmp_path, monkeypatch):
    out = tmp_path / 'f.npz'
    options = dict(batch_size=4, num_workers=0, pool='patch')
    first = cmae_mm.embed(photos, pretrained.checkpoint, out, **options)
    assert first.shape == (8, 64, 48)
    before = out.read_bytes()
    monkeypatch.setattr('cmae_mm.apis.encoder.load_encoder', None)
    assert cmae_mm.embed(
        photos, pretrained.checkpoint, out, **options) == first
    with pytest.raises(FeatureFileError, match="written with encoder 'online'"
                       " instead of 'target'; choose another file"):
        cmae_mm.embed(photos, pretrained.checkpoint, out, encoder='target',
                      **options)
    assert out.read_bytes() == before
    (tmp_path / 'other.npz').write_text('notes')
    with pytest.raises(FeatureFileError, match='not a feature file'):
        cmae_mm.embed(photos, pretrained.checkpoint, tmp_path / 'other.npz')


def damage(path: Path, how: str) -> None:
    """Damage or delete a part."""
    content = bytearray(path.read_bytes())
    if how == 'removed':
        path.unlink()
    elif how == 'flipped':
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == 'moved':
        path.rename(path.with_name('part_0000000003_0000000007.npz'))
    else:
        path.write_bytes(content[:dict(emptied=0, cut=-30)[how]])


@pytest.mark.parametrize('how', [
    'removed', 'flipped', 'moved', 'emptied', 'cut'])
def test_parts_that_are_damaged_or_missing_are_computed_again(
        pretrained, folder, tmp_path, monkeypatch, how, capsys):
    monkeypatch.setattr(extraction, '_PART_SECONDS', 0.)
    options = dict(batch_size=2, num_workers=0)
    out = tmp_path / 'f.npz'
    with monkeypatch.context() as broken:
        broken.setattr(FeatureFile, 'finish', None)
        with pytest.raises(TypeError):
            cmae_mm.embed(folder, pretrained.checkpoint, out, **options)
    parts = sorted((tmp_path / 'f.npz.parts').glob('part_*'))
    assert len(parts) == 5
    damage(parts[2], how)
    seen, compute = [], extraction._features
    monkeypatch.setattr(
        extraction, '_features',
        lambda *args: seen.append(len(args[1])) or compute(*args))
    found = cmae_mm.embed(folder, pretrained.checkpoint, out, **options)
    assert len(seen) == 1  # that part and no other
    once = cmae_mm.embed(folder, pretrained.checkpoint, **options)
    assert found.paths == once.paths and found.skipped == once.skipped
    with np.load(out) as file:
        assert np.array_equal(file['features'], once.features)
    said = capsys.readouterr().out
    assert ('is damaged; its images are computed again' in said) == (
        how != 'removed')
    assert sorted(p.name for p in tmp_path.glob('.*')) == []


ODD = ('a\nb.jpg', 'a\x0bb.jpg', 'a\x0cb.jpg', 'a\x1cb.jpg', 'a\x1db.jpg',
       'a\x1eb.jpg', 'a\x85b.jpg', 'a\u2028b.jpg', 'a\u2029b.jpg', 'a\tb.jpg',
       'a,b.jpg', '"a".jpg', ' a.jpg', 'a\r.jpg', 'a%0A.jpg', 'caf\udce9.jpg',
       'sub\n/\udcff.jpg')


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """Images with odd names, each of its own content."""
    root = tmp_path_factory.mktemp('odd')
    write_images(root / 'made', len(ODD), size=70)
    for number, name in enumerate(ODD):
        (root / name).parent.mkdir(exist_ok=True)
        (root / 'made' / f'{number:03d}.jpg').rename(root / name)
    (root / 'made').rmdir()
    return root


@pytest.mark.parametrize('packed', ['folder', 'store', 'shards', 'list'])
def test_odd_names_keep_their_features(packed, pretrained, odd, tmp_path):
    """Each name with the feature of the file of this name."""
    data = tmp_path / packed
    if packed == 'folder':
        data = odd
    elif packed == 'store':
        pack_images(odd, data)
    elif packed == 'shards':
        pytest.importorskip('webdataset')
        pack_images(odd, data, 'shards', images_per_shard=5)
    else:  # with each image twice
        data = odd / 'list.txt'
        data.write_text(''.join(
            f'{encode_name(name)}\n' * 2 for name in ODD))
    out = tmp_path / 'f.npz'
    found = cmae_mm.embed(data, pretrained.checkpoint, out, batch_size=8,
                          num_workers=1)
    if packed == 'list':
        data.unlink()
        assert found.paths == [name for name in ODD for _ in range(2)]
    else:
        assert found.paths == sorted(ODD)
    encoder = cmae_mm.load_encoder(pretrained.checkpoint)
    with np.load(out) as file, torch.no_grad():
        assert file['paths'].tolist() == found.paths
        for name, feature in zip(file['paths'], file['features']):
            image = encoder.preprocess(str(odd / str(name)))
            np.testing.assert_allclose(
                feature, encoder(image[None])[0].numpy(), atol=1e-5)
    if packed == 'store':
        parquet = pytest.importorskip('pyarrow.parquet')
        (data / 'data.mdb').stat()
        options = dict(batch_size=8, num_workers=1)
        for _ in range(2):  # computed, and read again
            again = cmae_mm.embed(data, pretrained.checkpoint,
                                  tmp_path / 'f.parquet', **options)
            assert again.paths == found.paths
        table = parquet.read_table(tmp_path / 'f.parquet')
        assert [decode_name(p) for p in table['path'].to_pylist()
                ] == found.paths


def test_skipped_images_keep_name_and_reason(pretrained, odd, tmp_path):
    data = shutil.copytree(odd, tmp_path / 'data')
    for name in ('x\ny.jpg', '\udcfe.png', 'whole.jpg'):
        (data / name).write_bytes(b'no image at all')
    (data / 'whole.jpg').write_bytes(b'')
    found = cmae_mm.embed(data, pretrained.checkpoint, tmp_path / 'f.npz',
                          num_workers=0)
    lines = (tmp_path / 'f.npz.skipped.txt').read_text().split('\n')[:-1]
    assert {decode_name(line.split('\t')[0]): line.split('\t')[1]
            for line in lines} == found.skipped
    assert set(found.skipped) == {'x\ny.jpg', '\udcfe.png', 'whole.jpg'}
    assert 'empty' in found.skipped['whole.jpg']
    assert 'known format' in found.skipped['x\ny.jpg']


def test_second_process_on_the_same_file_raises(
        pretrained, photos, tmp_path, monkeypatch):
    with output_lock(tmp_path / 'f.npz'), pytest.raises(
            OutputInUse, match=f'f.npz is being written by process '
            f'{os.getpid()} on '):
        cmae_mm.embed(photos, pretrained.checkpoint, tmp_path / 'f.npz',
                      num_workers=0)
    assert not list(tmp_path.iterdir())


def test_a_store_gives_the_features_of_its_images(
        pretrained, photos, tmp_path):
    pack_images(photos, tmp_path / 'store')
    a, b = (cmae_mm.embed(data, pretrained.checkpoint, num_workers=0)
            for data in (photos, tmp_path / 'store'))
    assert a.paths == b.paths
    assert np.array_equal(a.features, b.features)


@pytest.mark.parametrize('name', ['f.parquet', 'F.PARQUET'])
def test_parquet_holds_the_same(name, pretrained, photos, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    options = dict(batch_size=4, num_workers=0)
    found = cmae_mm.embed(photos, pretrained.checkpoint,
                          tmp_path / name, **options)
    expected = cmae_mm.embed(photos, pretrained.checkpoint, **options)
    table = parquet.read_table(tmp_path / name)
    assert table['path'].to_pylist() == expected.paths
    assert np.array_equal(
        np.array(table['feature'].to_pylist(), 'float32'), expected.features)
    again = cmae_mm.embed(photos, pretrained.checkpoint,
                          tmp_path / name, **options)
    assert again == found


def test_a_parquet_library_that_does_not_fit_is_found_first(
        tmp_path, monkeypatch):
    """As the newest is, beside the numpy of the original packages."""
    (tmp_path / 'pyarrow.py').write_text(
        "raise ImportError('pyarrow requires NumPy 2.0 or newer')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'pyarrow', raising=False)
    with pytest.raises(ImportError, match="NumPy 2.0.*'pyarrow<22'"):
        cmae_mm.embed(tmp_path, __file__, tmp_path / 'f.parquet')


MISTAKES = {
    'a folder that is not there': (dict(data='none'), 'does not exist'),
    'a checkpoint that is not there': (
        dict(checkpoint='none.pth'), 'there is no checkpoint none.pth'),
    'an ending of no format': (
        dict(out='f.csv'), r"\.npz or \.parquet file, but got 'f.csv'"),
    'a folder as the file': (dict(out='.npz/../x.npz'), 'Is a directory'),
    'an unknown pool': (dict(pool='patches'), "did you mean 'patch'"),
    'an empty batch': (dict(batch_size=0), 'batch_size must be .* 1 or more'),
    'a text as a dtype': (dict(dtype='bfloat16'), 'dtype must be one of'),
}


def test_other_heads_or_other_photographs_are_other_settings(
        pretrained, folder, tmp_path):
    exported = tmp_path / 'plain.pth'
    state = torch.load(pretrained.checkpoint, weights_only=False)
    torch.save(dict(state_dict={
        k: v for k, v in state['state_dict'].items()
        if k.startswith('backbone.')}), exported)
    out = tmp_path / 'f.npz'
    cmae_mm.embed(folder, exported, out, num_heads=2, num_workers=0)
    with pytest.raises(FeatureFileError, match='num_heads 2 instead of 4'):
        cmae_mm.embed(folder, exported, out, num_heads=4, num_workers=0)
    cmae_mm.embed(folder, exported, tmp_path / 'layer.npz', num_heads=2,
                  layer=[1], num_workers=0)
    for path, layer in ((out, [1]), (tmp_path / 'layer.npz', [])):
        with pytest.raises(FeatureFileError, match='with layer .* instead'):
            cmae_mm.embed(folder, exported, path, num_heads=2, layer=layer)
    with pytest.raises(ArgumentError, match='from 1 to 2, .* but got 3'):
        cmae_mm.embed(folder, exported, num_heads=2, layer=[3])
    first = sorted((folder / 'a').glob('*.jpg'))[0]
    write_images(folder / 'b', 1, size=80, seed=9)
    shutil.copy(folder / 'b/000.jpg', first)
    with pytest.raises(FeatureFileError, match='with other image files;'):
        cmae_mm.embed(folder, exported, out, num_heads=2, num_workers=0)


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_refused_before_anything_is_loaded(
        name, pretrained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr('cmae_mm.apis.encoder.load_encoder', None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / '.npz').mkdir()
    (tmp_path / 'x.npz').mkdir()
    given, said = MISTAKES[name]
    call = dict(dict(data=photos, checkpoint=pretrained.checkpoint), **given)
    with pytest.raises((ArgumentError, OSError), match=said):
        cmae_mm.embed(**call)
