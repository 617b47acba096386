"""Data sets of invalid folders."""
import os

import numpy as np
import pytest
from helpers import write_images

from cmae_mm.datasets import LabelledDataset, PretrainingDataset
from cmae_mm.datasets.samplers import SeededIndex


@pytest.mark.parametrize('kind', [PretrainingDataset, LabelledDataset])
def test_a_circle_of_links_is_named(kind, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.datasets.print_log',
                        lambda text, **kwargs: said.append(text))
    write_images(tmp_path / 'train/class0', 2)
    os.symlink(tmp_path / 'train', tmp_path / 'train/class0/again')
    dataset = kind(data_root=str(tmp_path), data_prefix='train',
                   with_label=True)
    assert len(dataset) == 2 and dataset.CLASSES == ('class0', )
    assert said[0].endswith('skipped: 1 circular link (class0/again).')


def half_broken(root, **kwargs):
    """A data set of which every second file is no image."""
    write_images(root, 8)
    for number in range(0, 8, 2):
        (root / f'{number:03d}.jpg').write_text('no image')
    return PretrainingDataset(
        data_root=str(root), pipeline=[dict(type='LoadCanvas', size=16)],
        **kwargs)


def test_replacement_of_a_broken_image_depends_on_its_seed(tmp_path):
    dataset = half_broken(tmp_path)
    first = [dataset[SeededIndex(0, seed)] for seed in range(6)]
    # Neither what was loaded before nor numpy's own state matters.
    np.random.seed(9)
    again = [dataset[SeededIndex(0, seed)] for seed in reversed(range(6))]
    for one, other in zip(first, again[::-1]):
        assert one['img_path'] == other['img_path']
        assert (one['img'] == other['img']).all()
    assert len({sample['img_path'] for sample in first}) > 1
    # Without a seed it is drawn from numpy's generator, as mmengine does.
    drawn = []
    for _ in range(2):
        np.random.seed(5)
        drawn.append(dataset[0]['img'])
    assert (drawn[0] == drawn[1]).all()


def test_a_broken_image_is_not_replaced_in_a_test(tmp_path):
    dataset = half_broken(tmp_path, test_mode=True)
    assert dataset[SeededIndex(1, 3)]['img'].shape == (16, 16, 3)
    with pytest.raises(Exception, match='should not get `None`'):
        dataset[SeededIndex(0, 3)]
