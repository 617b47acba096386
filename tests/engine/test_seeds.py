"""Random draws derived from seed, epoch, sample, rank and step."""
import pickle
import random

import numpy as np
import pytest
import torch
from helpers import runner_cfg
from mmcv.transforms import BaseTransform
from mmengine.dataset import (BaseDataset, ClassBalancedDataset, ConcatDataset,
                              RepeatDataset)
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader

from cmae_mm.datasets import SeedDraws, SeededInfiniteSampler, SeededSampler
from cmae_mm.datasets.samplers import SeededIndex
from cmae_mm.engine import ResumableRunner, StepSeedHook
from cmae_mm.engine.loops import skip_batches
from cmae_mm.models import TwoViewDataPreprocessor


class Draw(BaseTransform):
    """Draw from all generators; every seventh sample fails at first."""

    def __init__(self, fails=False):
        self.fails = fails

    def transform(self, results):
        if self.fails and results['sample_idx'] % 7 == 3:
            return None
        return int(results['number']), (
            random.random(), float(np.random.rand()), float(torch.rand(1)))


class Numbers(BaseDataset):

    def __init__(self, count, fails=False, **kwargs):
        self.count = count
        super().__init__(
            metainfo=dict(classes=['a', 'b']),
            pipeline=[SeedDraws(), Draw(fails)], **kwargs)

    def load_data_list(self):
        return [dict(number=i, gt_label=i % 2) for i in range(self.count)]

    def get_cat_ids(self, idx):
        return [self.get_data_info(idx)['gt_label']]


DATASETS = dict(
    plain=lambda: Numbers(20),
    failing=lambda: Numbers(20, fails=True),
    concatenated=lambda: ConcatDataset([Numbers(7), Numbers(13)]),
    repeated=lambda: RepeatDataset(Numbers(10), 2),
)


def draw(dataset, workers, epoch=0):
    torch.manual_seed(workers)  # must not matter
    sampler = SeededSampler(dataset, seed=1)
    sampler.set_epoch(epoch)
    loader = DataLoader(
        dataset, batch_size=4, sampler=sampler, num_workers=workers,
        collate_fn=list)
    return [sample for batch in loader for sample in batch]


@pytest.mark.parametrize('kind', DATASETS)
def test_a_sample_draws_the_same_in_any_worker(kind):
    dataset = DATASETS[kind]()
    alone = draw(dataset, 0)
    assert len({d for _, d in alone}) == 20  # each its own
    assert draw(dataset, 2) == alone
    assert draw(dataset, 3) == alone
    assert draw(dataset, 0, epoch=1) != alone


def test_lost_seed_is_logged(monkeypatch):
    """mmengine's class balancing looks its indices up in a list."""
    said = []
    monkeypatch.setattr(
        'cmae_mm.datasets.transforms.print_log',
        lambda text, **kwargs: said.append(text))
    dataset = ClassBalancedDataset(Numbers(8), oversample_thr=1e-3)
    draw(dataset, 0)
    assert len(said) == 1 and 'SeededSampler' in said[0]


def test_an_index_with_a_seed_is_an_index():
    index = pickle.loads(pickle.dumps(SeededIndex(7, 5)))
    for made, value in ((index, 7), (index - 4, 3), (index % 4, 3)):
        assert made == value and made.seed == 5
    assert list(range(10))[index] == 7


def test_an_endless_sampler_begins_anew_and_skips():
    sampler = SeededInfiniteSampler(range(5), seed=0)

    def take(count):
        return [(int(i), i.seed) for i, _ in zip(sampler, range(count))]

    whole = take(12)
    assert take(12) == whole and len({s for _, s in whole}) == 12
    sampler.skip(7)
    assert take(5) == whole[7:]


def test_steps_and_ranks_draw_differently(monkeypatch):
    """What follows from the hook alone: masks, views, drop path, mixup."""
    preprocessor = TwoViewDataPreprocessor(
        size=8, max_shift=4, mean=[0.] * 3, std=[1.] * 3)

    class Run:
        seed = 0
        iter = 0

    def drawn(rank, step):
        monkeypatch.setattr(
            'cmae_mm.engine.hooks.step_hooks.get_rank', lambda: rank)
        torch.rand(step + 3), np.random.rand(rank + 5)  # must not matter
        run = Run()
        run.iter = step
        StepSeedHook().before_train_iter(run, 0)
        shift = preprocessor.draw_params(4).shift
        return (random.random(), float(np.random.beta(0.8, 0.8)),
                float(torch.rand(1)), tuple(shift.flatten().tolist()))

    seen = {(r, s): drawn(r, s) for r in (0, 1) for s in (0, 1, 2)}
    for values in zip(*seen.values()):
        assert len(set(values)) == 6
    assert drawn(1, 2) == seen[1, 2]


def test_equal_masks_on_all_ranks_are_refused(image_root, tmp_path,
                                              monkeypatch):
    """Under another runner, and without the hook, before the first step."""
    cfg = runner_cfg(image_root, tmp_path)
    cfg.default_hooks.pop('step_seed')
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr(
        'cmae_mm.engine.hooks.check_hooks.get_world_size', lambda: 2)
    with pytest.raises(ValueError, match='same masks.*StepSeedHook'):
        runner.train()


class OddBatches(BatchSampler):
    """Batches of 1, 2, 3... as mmdet's samplers make some of their own."""

    def __iter__(self):
        indices, size = list(self.sampler), 0
        while indices:
            size += 1
            yield indices[:size]
            indices = indices[size:]


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_skipped_once_for_all_samplers(workers):
    dataset = Numbers(21)
    sampler = SeededSampler(dataset, seed=1)
    loader = DataLoader(
        dataset, batch_sampler=OddBatches(sampler, 1, False),
        num_workers=workers, persistent_workers=workers > 0, collate_fn=list)
    whole = list(loader)
    assert [len(b) for b in whole] == [1, 2, 3, 4, 5, 6]
    assert skip_batches(loader, 4)
    loader._iterator = None  # as in a new process
    assert list(loader) == whole[4:]
    assert list(loader) == whole
    assert loader.batch_sampler.sampler is sampler


class Watch(Hook):
    """Note what each step is made of."""

    def __init__(self):
        self.images, self.rates, self.epochs, self.etas = [], [], [], []

    def before_train_epoch(self, runner):
        self.epochs.append(runner.epoch)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images.append(
            [s.img_path for s in data_batch['data_samples']])
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])

    def after_train_iter(self, runner, *args, **kwargs):
        self.etas.append(runner.message_hub.get_info('eta'))


def train(image_root, folder, epochs, batch, **options):
    cfg = runner_cfg(
        image_root, folder, **{
            'train_dataloader.batch_size': batch,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 10,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
            'resume': True,
            **options
        })
    cfg.train_dataloader.sampler.type = 'SeededSampler'
    if epochs:
        cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs)
    cfg.param_scheduler = [
        dict(type='CosineAnnealingLR', T_max=4, end=4, by_epoch=True,
             convert_to_iter_based=True) if epochs else
        dict(type='CosineAnnealingLR', T_max=40, end=40, by_epoch=False)
    ]
    runner = ResumableRunner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch, priority='LOWEST')
    runner.train()
    return runner, watch


def test_other_batch_size_resumes_at_the_same_fraction(image_root, tmp_path):
    """24 images: 6 iterations an epoch, then 8, and 12."""
    _, before = train(image_root, tmp_path, 4, 4)
    assert len(before.images) == 24
    for path in tmp_path.glob('iter_2*.pth'):
        path.unlink()
    # iter_10 is 4 of 6 batches in the second epoch: 16 of 24 images
    runner, after = train(image_root, tmp_path, 4, 3)
    assert len(after.images) == 32 - 8 - 16 // 3 and after.epochs == [1, 2, 3]
    assert runner.iter == runner.max_iters == 32
    seen = sum(before.images[6:10], [])
    assert set(sum(after.images[:3], [])).isdisjoint(seen[:15])
    assert min(after.etas) == 0 and after.etas[0] > 0
    # The new schedule, at that place.
    _, whole = train(image_root, tmp_path / 'whole', 4, 3)
    assert after.rates == pytest.approx(whole.rates[-len(after.rates):])


def test_another_batch_without_epochs(image_root, tmp_path, monkeypatch):
    """As many images are skipped as were seen; epochs' samplers work too."""
    # mmengine waits 2 seconds between epochs.
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda s: None)
    options = {'train_cfg.max_iters': 14}
    train(image_root, tmp_path, 0, 4, **options)
    (tmp_path / 'iter_14.pth').unlink()
    _, after = train(image_root, tmp_path, 0, 2, **options)
    assert len(after.images) == 4
    _, whole = train(image_root, tmp_path / 'whole', 0, 2,
                     **{'train_cfg.max_iters': 24})
    assert after.images == whole.images[20:]
