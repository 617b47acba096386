"""Names and order of ten million images in little memory."""
import os
import shutil
from itertools import islice
from unittest.mock import patch

import pytest
from helpers import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.fileio import LocalBackend
from mmpretrain.datasets import CustomDataset
from torch.utils.data import DataLoader

from cmae_mm.datasets import (BlockShuffleSampler, PretrainingDataset,
                              SeededInfiniteSampler, SeededSampler)
from cmae_mm.datasets.listing import read_list
from cmae_mm.datasets.names import FileNames
from cmae_mm.datasets.source import open_source
from cmae_mm.engine.loops import skip_batches

NAMES = st.text(
    st.characters(blacklist_characters='\n\r\x0b\x0c\x1c\x1d\x1e\x85  ',
                  blacklist_categories=('Cs', )), min_size=1, max_size=9)


@given(st.lists(st.lists(NAMES)), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_names_are_kept_as_they_are(groups, step):
    flat = [name for group in groups for name in group]
    names = FileNames.of(iter(groups))
    assert list(names) == flat and len(names) == len(flat)
    assert names[::step] == flat[::step]
    if flat:
        assert names[-1] == flat[-1]


@pytest.mark.parametrize('end', ['', '\n', '\r\n', '\n\n'])
@pytest.mark.parametrize('lines', [
    ['a.jpg'], ['a/b.jpg', 'ä ö/ü.png', 'c.jpg']])
def test_lines_of_a_file(lines, end, tmp_path):
    path = tmp_path / 'names.txt'
    between = '\r\n' if end == '\r\n' else '\n'
    path.write_bytes((between.join(lines) + end).encode())
    assert list(read_list(str(path), '').names) == lines


def test_a_million_names_take_little():
    groups = ([f'{folder:04d}/{i:08d}.jpg' for i in range(1000)]
              for folder in range(1000))
    names = FileNames.of(groups)
    assert len(names) == 10**6 and names[123_456] == '0123/00000456.jpg'
    assert names.nbytes == 10**6 * (17 + 8)


@given(st.lists(st.lists(st.sampled_from(
    ['a', 'a.jpg', 'a-b', 'b', '.c', 'd.jpg', 'A', 'a b.jpg']), min_size=1,
    max_size=3), max_size=8))
@settings(max_examples=40, deadline=None)
def test_folders_are_listed_in_the_order_of_mmengine(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp('tree')
    for *folders, name in paths:
        place = root.joinpath(*(f'{f}_' for f in folders))
        place.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    expected = sorted(
        name for name in LocalBackend().list_dir_or_file(
            str(root), list_dir=False, recursive=True)
        if '/.' not in f'/{name}')
    if expected:
        assert list(open_source(root, extensions=['']).names) == expected
    shutil.rmtree(root)


def test_the_data_set_has_the_images_of_mmpretrains(tmp_path):
    for folder in ('train/b', 'train/a-a', 'train/a', 'train'):
        write_images(tmp_path / folder, 2)
    (tmp_path / 'train/other.txt').touch()
    listing = tmp_path / 'list.txt'
    outside = tmp_path / 'train/b/000.jpg'
    listing.write_text(f'train/a/001.jpg\n{outside}\ntrain/000.jpg')
    for extra in (dict(data_prefix='train'), dict(ann_file='list.txt')):
        ours, theirs = (
            kind(data_root=str(tmp_path), with_label=False, **extra)
            for kind in (PretrainingDataset, CustomDataset))
        assert len(ours) == len(theirs) > 2
        for index in (*range(len(ours)), -1):
            assert ours.get_data_info(index) == theirs.get_data_info(index)
        assert [ours.get_subset(2)[i] for i in range(2)] == [
            theirs.get_subset(2)[i] for i in range(2)]
    listing.write_text('\n')
    with pytest.raises(ValueError, match='list.txt lists no images'):
        PretrainingDataset(data_root=str(tmp_path), ann_file='list.txt')


SIZES = dict(
    size=st.integers(1, 40), world=st.integers(1, 5), rank=st.integers(0, 4),
    shuffle=st.booleans(), seed=st.integers(0, 99))


@given(epoch=st.integers(0, 3), round_up=st.booleans(), **SIZES)
@settings(max_examples=80, deadline=None)
def test_the_order_is_mmengines(size, world, rank, shuffle, seed, epoch,
                                round_up):
    rank %= world
    with patch('mmengine.dataset.sampler.get_dist_info', lambda: (
            rank, world)):
        ours, theirs = (
            kind(range(size), shuffle=shuffle, seed=seed, round_up=round_up)
            for kind in (SeededSampler, DefaultSampler))
    for sampler in (ours, theirs):
        sampler.set_epoch(epoch)
    expected = list(theirs)
    drawn = list(ours)
    assert drawn == expected
    for skipped in (0, 1, len(drawn) // 2, len(drawn)):
        ours.skip(skipped)
        rest = list(ours)
        assert rest == drawn[skipped:]
        assert [i.seed for i in rest] == [i.seed for i in drawn[skipped:]]
    assert list(ours) == drawn  # once


@given(skipped=st.integers(0, 200), **SIZES)
@settings(max_examples=80, deadline=None)
def test_the_endless_order_is_mmengines(size, world, rank, shuffle, seed,
                                        skipped):
    rank %= world
    with patch('mmengine.dataset.sampler.get_dist_info', lambda: (
            rank, world)):
        ours, theirs = (
            kind(range(size), shuffle=shuffle, seed=seed)
            for kind in (SeededInfiniteSampler, InfiniteSampler))
    drawn = list(islice(ours, skipped + 50))
    assert drawn == list(islice(theirs, skipped + 50))
    ours.skip(skipped)
    rest = list(islice(ours, 50))
    assert rest == drawn[skipped:]
    assert [i.seed for i in rest] == [i.seed for i in drawn[skipped:]]


@given(block=st.integers(1, 9), window=st.integers(1, 4), **SIZES)
@settings(max_examples=60, deadline=None)
def test_blocks_are_shuffled_and_every_image_comes_once(
        size, world, rank, shuffle, seed, block, window):
    with patch('mmengine.dataset.sampler.get_dist_info', lambda: (0, world)):
        sampler = BlockShuffleSampler(
            range(size), block, window, shuffle=shuffle, seed=seed)
    order = sampler.order()
    assert sorted(order) == list(range(size))
    assert (order == sampler.order()).all()
    span = block * window * world
    for start in range(0, size, span):
        # the last block may be short, and so begin a window early
        blocks = set((order[start:start + span] // block).tolist())
        assert not shuffle or len(blocks) <= window * world + 1


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_skipped_without_being_drawn(workers):
    def batches(count):
        sampler = SeededSampler(range(23), seed=3)
        loader = DataLoader(
            range(23), 4, sampler=sampler, num_workers=workers,
            persistent_workers=workers > 0)
        assert skip_batches(loader, count)
        first = [batch.tolist() for batch in loader]
        return first, [batch.tolist() for batch in loader]

    whole, again = batches(0)
    part, after = batches(4)
    assert part == whole[4:] and after == again == whole


def test_many_files_start_quickly(tmp_path):
    """20,000 names on disk: listed as links, in well under a second."""
    (tmp_path / 'one.jpg').touch()
    for folder in range(20):
        (tmp_path / f'{folder:03d}').mkdir()
        for i in range(1000):
            os.link(tmp_path / 'one.jpg', tmp_path / f'{folder:03d}/{i}.jpg')
    dataset = PretrainingDataset(data_root=str(tmp_path))
    assert len(dataset) == 20_001
    assert dataset.source.names.nbytes < 20_001 * 24
