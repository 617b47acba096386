"""Training with a few broken images."""
import json

import pytest
import torch
from helpers import write_images
from tiny_training import on_ranks
from torch.utils.data import DataLoader

import cmae_mm
from cmae_mm.datasets import LoadCanvas, PretrainingDataset
from cmae_mm.datasets.pack import pack_images
from cmae_mm.datasets.samplers import SeededSampler
from cmae_mm.datasets.transforms import BrokenImagesError


def folder_of(root, whole, broken):
    """Write whole and broken images, mixed by their names."""
    write_images(root, whole, size=20)
    for number in range(broken):
        (root / f'{number:03d}_broken.jpg').write_text('no image')
    return root


def train(data, out, smaller, workers=0, **options):
    options = {'default_hooks.logger.interval': 100, **options}
    return cmae_mm.pretrain(
        data, 'mini', epochs=2, batch_size=4, num_workers=workers, out=out,
        cfg_options={**smaller, **options})


def warnings_of(out):
    log = next(out.glob('*/*.log')).read_text().splitlines()
    return [line for line in log if 'could not be decoded' in line]


def test_a_tenth_may_be_broken(tmp_path, smaller):
    data = folder_of(tmp_path / 'data', 36, 4)
    train(data, tmp_path / 'out', smaller, workers=2)
    said = warnings_of(tmp_path / 'out')
    assert len(said) == 2  # once an epoch
    for epoch, line in enumerate(said, 1):
        assert f'4 of 40 images of epoch {epoch} (10.0%) could not' in line
    log = next((tmp_path / 'out').glob('*/*.log')).read_text()
    assert log.count('Skipped') >= 4
    assert 'broken.jpg, which cannot be decoded (it is not an image o' in log


@pytest.mark.parametrize('workers', [0, 2])
def test_more_than_a_tenth_stop_the_training(tmp_path, smaller, workers):
    data = folder_of(tmp_path / 'data', 35, 5)
    with pytest.raises(BrokenImagesError, match=(
            r'^5 of 40 images of epoch 1 \(12.5%\) could not be decoded, '
            'more than max_broken=0.1 of LoadCanvas allows; the log names')):
        train(data, tmp_path / 'out', smaller, workers)
    assert not list((tmp_path / 'out').glob('*.pth'))
    key = 'train_dataloader.dataset.pipeline.0.max_broken'
    train(data, tmp_path / 'more', smaller, workers, **{key: 0.2})
    assert len(warnings_of(tmp_path / 'more')) == 2


def test_nearly_all_broken(tmp_path, smaller):
    """Results of complete training on the other 7 of 120."""
    data = folder_of(tmp_path / 'data', 7, 113)
    with pytest.raises((BrokenImagesError, RuntimeError),
                       match='113 of 120 images|100 images in a row'):
        train(data, tmp_path / 'out', smaller)


def test_loops_of_iterations_count_as_many_images_as_there_are(tmp_path):
    from helpers import runner_cfg

    from cmae_mm.engine import ResumableRunner
    data = folder_of(tmp_path / 'data', 6, 2)
    cfg = runner_cfg(data, tmp_path / 'out', **{'train_cfg.max_iters': 9})
    with pytest.raises(BrokenImagesError, match=r'images before iteration 2 '):
        ResumableRunner.from_cfg(cfg).train()


def test_workers_count_each_image_once_an_epoch(tmp_path):
    folder_of(tmp_path, 9, 6)
    dataset = PretrainingDataset(
        data_root=str(tmp_path), pipeline=[dict(type='LoadCanvas', size=8)])
    transform = dataset.pipeline.transforms[0]
    loader = DataLoader(
        dataset, 2, sampler=SeededSampler(dataset, seed=1), num_workers=2,
        persistent_workers=True, collate_fn=len)
    for epoch in (1, 2, 3):
        assert sum(loader) == 15
        assert (transform.loaded, transform.broken) == (15 * epoch, 6 * epoch)


def test_ranks_agree_on_the_share(tmp_path, smaller):
    """Rank 1 has all broken images, and both ranks stop."""
    data = folder_of(tmp_path / 'data', 35, 5)

    def rank(number):
        import os
        os.environ['WORLD_SIZE'] = '2'
        try:
            cmae_mm.pretrain(
                data, 'mini', epochs=2, batch_size=4, num_workers=0,
                out=tmp_path / 'out', cfg_options=smaller, launcher='pytorch')
        except BrokenImagesError as error:
            (tmp_path / f'{number}.json').write_text(json.dumps(str(error)))

    on_ranks(rank, tmp_path)
    said = {json.loads((tmp_path / f'{n}.json').read_text()) for n in (0, 1)}
    assert len(said) == 1
    assert said.pop().startswith('5 of 40 images of epoch 1')


@pytest.mark.parametrize('wrong', [-0.1, 1.5, 'many', None])
def test_a_wrong_share_is_refused(wrong):
    with pytest.raises(ValueError, match='max_broken must be between 0 and 1'):
        LoadCanvas(8, max_broken=wrong)


# What docs/own-data.md recommends, on the model that it begins with.
SETTINGS = {
    'train_dataloader.dataset.pipeline.0.crop_ratio_range': (0.5, 1.0),
    'train_dataloader.dataset.pipeline.0.flip_prob': 0,
    'data_preprocessor.jitter': (0.1, 0.1, 0, 0),
    'data_preprocessor.blur_prob': 0,
}


def test_mini_takes_stores_and_the_settings_of_the_tutorial(
        photos, smaller, tmp_path):
    pack_images(photos, tmp_path / 'store.lmdb')
    done = cmae_mm.pretrain(
        tmp_path / 'store.lmdb', 'mini', epochs=1, batch_size=4,
        num_workers=0, out=tmp_path / 'out',
        cfg_options={**smaller, **SETTINGS})
    state = torch.load(done.checkpoint, weights_only=False)['state_dict']
    assert all(torch.isfinite(v).all() for v in state.values()
               if v.is_floating_point())
