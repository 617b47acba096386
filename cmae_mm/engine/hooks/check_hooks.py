"""Checks of data and settings before the first step."""
import logging
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import ConstantParamScheduler, LinearParamScheduler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS
from torch.nn import BatchNorm1d, SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset

from ...datasets.datasets import count_classes
from ...datasets.transforms import BrokenImagesError, LoadImageOrSkip
from ...models import CMAE
from ..device import unwrapped_model
from ..loops import index_sampler
from .step_hooks import StepSeedHook, TargetUpdateHook


def check_loader(loader: DataLoader, by_epoch: bool = False) -> list[int]:
    """Check that all ranks have the same number of batches, at least one.

    Args:
        loader (DataLoader): The training's data loader.
        by_epoch (bool): Whether the training loop counts epochs. Defaults to
            False.

    Returns:
        list[int]: Number of samples that each rank draws in an epoch; empty
        for an ``IterableDataset``, whose length is not known.

    Raises:
        ValueError: If ranks have different numbers of images or batches per
            epoch, or no batch, or an epoch has no end.
    """
    if isinstance(loader.dataset, IterableDataset):
        return []
    if by_epoch and _is_endless(loader):
        raise ValueError(
            'an epoch of InfiniteSampler never ends; set train_dataloader.'
            "sampler.type='SeededSampler', or train by iterations with "
            "train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)")
    ranks = all_gather_object(
        (len(loader.dataset), len(loader),  # type: ignore[arg-type]
         len(index_sampler(loader))))
    images, batches, _ = ranks[0]
    for rank, other in enumerate(ranks):
        if other[0] != images:
            raise ValueError(
                f'rank {rank} finds {other[0]} images and rank 0 {images}; '
                'all ranks must see the same data')
        if other[1] != batches:
            raise ValueError(
                f'an epoch has {other[1]} batches on rank {rank} and {batches}'
                ' on rank 0, which would hang; remove '
                'train_dataloader.sampler.round_up, so that all ranks draw '
                'the same number of images')
    # An infinite sampler fills a batch from any number of images.
    if not batches and not _is_endless(loader):
        raise ValueError(
            f'the training data has {images} images, fewer than one batch of '
            f'{loader.batch_size} on {get_world_size()} process(es); lower '
            'train_dataloader.batch_size or add images')
    return [samples for _, _, samples in ranks]


def check_target_moves(runner: Runner) -> None:
    """Check that a hook or the optimizer updates the target of a CMAE.

    Args:
        runner (Runner): A runner before its training.

    Raises:
        ValueError: If not, and ``model.target.fixed`` is not set.
    """
    model = unwrapped_model(runner)
    if (not isinstance(model, CMAE) or model.target is None
            or model.target.fixed or model.target.is_following):
        return
    # The hook may be registered but not running yet.
    if not any(isinstance(hook, TargetUpdateHook) for hook in runner.hooks):
        raise ValueError(
            'nothing updates the target: add '
            "dict(type='TargetUpdateHook') to custom_hooks, or set "
            'model.target.fixed=True to keep its initial weights')


def check_schedules(runner: Runner) -> None:
    """Warn if the learning rate's schedule does not fit the run's length.

    A warm-up followed by a constant learning rate is not reported.

    Args:
        runner (Runner): A runner with built schedules, before its training.
    """
    schedules = [s for s in runner.param_schedulers or () if getattr(
        s, 'param_name', None) == 'lr']
    if not schedules:
        return
    loop, length = runner.train_loop, 1
    unit, total = 'iterations', loop.max_iters
    if isinstance(loop, EpochBasedTrainLoop):
        length = len(runner.train_dataloader)
        unit, total = 'epochs', loop.max_epochs
    ends = []
    for schedule in schedules:
        end = schedule.end
        if hasattr(schedule, 'T_max'):
            end = schedule.begin + schedule.T_max
        ends.append(end if schedule.by_epoch else end / length)
    end = max(ends)
    warms_up = isinstance(schedules[ends.index(end)],
                          (ConstantParamScheduler, LinearParamScheduler))
    if end > total or (end < total and not warms_up):
        setting = 'max_epochs' if unit == 'epochs' else 'max_iters'
        runner.logger.warning(
            f'The learning rate schedule has {end:g} {unit}, but the training '
            f'{total}: ' + (
                'the schedule is cut off.' if end > total else
                'the learning rate is not scheduled after that.') +
            ' Set begin, end and T_max in param_scheduler to fit train_cfg.'
            f'{setting}.')


def batch_sizes(loader: DataLoader) -> list[int]:
    """Return the batch sizes of this process, if known."""
    batch = loader.batch_size
    if batch is None:  # batch sampler
        return []
    if loader.drop_last or _is_endless(loader):
        return [batch]
    left = len(index_sampler(loader)) % batch
    return [batch, left] if left else [batch]


def _is_endless(loader: DataLoader) -> bool:
    return isinstance(loader.dataset, IterableDataset) or isinstance(
        getattr(loader, 'sampler', None), InfiniteSampler)


def check_batch_norm(runner: Runner, kinds: Any = _BatchNorm) -> None:
    """Check that BatchNorm gets more than one image.

    Args:
        runner (Runner): A runner before its training.
        kinds (type | tuple[type]): The layers that need several images.
            Defaults to all BatchNorm layers.

    Raises:
        ValueError: If a batch, or an epoch's last one, has a single image in
            a process and layers are not synchronised between processes.
    """
    norms = [m for m in unwrapped_model(runner).modules()
             if isinstance(m, kinds)]
    sizes = batch_sizes(runner.train_dataloader)
    synchronised = get_world_size() > 1 and all(
        isinstance(m, SyncBatchNorm) for m in norms)
    if not norms or synchronised or 1 not in sizes:
        return
    batch = 'the last batch of an epoch' if len(sizes) > 1 else 'a batch'
    raise ValueError(
        f'{batch} of a process has a single image, but BatchNorm needs two or '
        'more; set train_dataloader.drop_last=True, another '
        "train_dataloader.batch_size, or on several GPUs sync_bn='torch'")


class BrokenImagesHook(Hook):
    """Report broken images after each epoch; stop if there are too many.

    Base class of the hooks that check training data. It sums the counts of the
    transforms that skip broken images, ``LoadCanvas`` and ``LoadImageOrSkip``,
    over all data workers and processes. In an iteration-based loop, an epoch
    ends when as many images are drawn as the data set has.

    Raises:
        BrokenImagesError: In training, if more than ``max_broken`` of an
            epoch's images are broken.
    """

    _counted = (0, 0)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Report at the end of an epoch in an iteration-based loop."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop) or isinstance(
                runner.train_dataloader.dataset, IterableDataset):
            return
        if self.every_n_train_iters(runner, len(runner.train_dataloader)):
            self._report(runner, f'before iteration {runner.iter + 1}')

    def after_train_epoch(self, runner) -> None:
        """Report at the end of an epoch."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._report(runner, f'of epoch {runner.epoch + 1}')

    def _report(self, runner, when: str) -> None:
        loaders = find_skipping_transforms(runner.train_dataloader.dataset)
        if not loaders:
            return
        now = (sum(t.loaded for t in loaders), sum(t.broken for t in loaders))
        counts = torch.tensor(now) - torch.tensor(self._counted)
        self._counted = now
        all_reduce(counts)
        loaded, broken = counts.tolist()
        if not broken:
            return
        # With numbers, since mmengine drops repeated warnings.
        text = (f'{broken:,} of {loaded:,} images {when} '
                f'({broken / loaded:.1%}) could not be decoded')
        limit = max(t.max_broken for t in loaders)
        if broken > limit * loaded:
            raise BrokenImagesError(
                f'{text}, more than max_broken={limit:g} of '
                f'{type(loaders[0]).__name__} allows; the log names them. '
                'Remove them, or set max_broken higher')
        runner.logger.warning(f'{text}; other images replaced them.')


def find_skipping_transforms(dataset: Any) -> list[LoadImageOrSkip]:
    """Find the transforms of a data set that skip broken images."""
    inner = getattr(dataset, 'datasets', None) or [
        getattr(dataset, 'dataset', None)]
    found = [t for one in inner if one is not None
             for t in find_skipping_transforms(one)]
    pipeline = getattr(dataset, 'pipeline', None)
    return found + [t for t in getattr(pipeline, 'transforms', ())
                    if isinstance(t, LoadImageOrSkip)]


@HOOKS.register_module()
class PretrainCheckHook(BrokenImagesHook):
    """Check batch, data set and target before pre-training starts.

    After each epoch it reports how many images were broken, and stops if
    there are too many.

    Raises:
        BrokenImagesError: In training, if more than ``max_broken`` of an
            epoch's images are broken.
        ValueError: If a batch of a process has a single image; if the data set
            is smaller than one batch; if nothing updates the target; if all
            processes would draw the same masks; or if the last batches of
            processes would differ in size.
    """

    def before_train(self, runner) -> None:
        """Check the data, the batch and the target."""
        check_batch_norm(runner)
        self._check_shares(runner.train_dataloader)
        # For mmengine's Runner, which does not check this.
        check_target_moves(runner)
        self._check_draws(runner)

    @staticmethod
    def _check_draws(runner) -> None:
        if (get_world_size() > 1
                and not any(isinstance(h, StepSeedHook) for h in runner.hooks)
                and not runner._randomness_cfg.get('diff_rank_seed')):
            raise ValueError(
                f'all {get_world_size()} processes would draw the same masks; '
                "set default_hooks.step_seed=dict(type='StepSeedHook')")

    @staticmethod
    def _check_shares(loader: DataLoader) -> None:
        samples = check_loader(loader)
        batch = (loader.batch_size or 0) * get_world_size()
        if samples and len(loader.dataset) < batch:
            print_log(
                f'The training data has {len(loader.dataset)} images, fewer '
                f'than a batch of {batch}: some images of a batch are equal, '
                'and each is a negative of its copies. Lower '
                'train_dataloader.batch_size or add images.',
                logger='current', level=logging.WARNING)
        if len(set(samples)) > 1 and not loader.drop_last:
            raise ValueError(
                'InfoNCE needs batches of one size on all processes, but they '
                f'would draw {samples} images per epoch; remove '
                'train_dataloader.sampler.round_up, or set '
                'train_dataloader.drop_last=True')


@HOOKS.register_module()
class TransferCheckHook(BrokenImagesHook):
    """Check labels and classes before a classifier is trained.

    After each epoch it reports broken images, as ``PretrainCheckHook`` does.

    Raises:
        ValueError: If a data set is empty or has no labels, validation
            classes are not the training classes, or the head has another
            number of them; if validation computes the accuracy of the top 5
            of fewer classes; or if a batch has a single image for BatchNorm.
    """

    def before_train(self, runner) -> None:
        """Check training and validation data against the head."""
        train = runner.train_dataloader.dataset
        splits = dict(train=train)
        if runner.val_loop is not None:
            splits['val'] = runner.val_dataloader.dataset
            from ...evaluation.data import check_same_classes
            check_same_classes(*(data.metainfo.get('classes')
                                 for data in splits.values()))
            self._check_topk(runner)
        model = unwrapped_model(runner)
        for name, dataset in splits.items():
            self._check_labels(name, dataset, model.head.num_classes)
        prepared = getattr(model.data_preprocessor, 'num_classes', None)
        if prepared not in (None, model.head.num_classes):
            raise ValueError(
                f'data_preprocessor.num_classes={prepared}, but the head has '
                f'num_classes={model.head.num_classes}; set both to the '
                "data's number of classes")
        # BatchNorm of maps also normalises over positions.
        check_batch_norm(runner, (BatchNorm1d, SyncBatchNorm))

    @staticmethod
    def _check_topk(runner) -> None:
        """Check top-k, an error of mmpretrain after the first validation."""
        classes = unwrapped_model(runner).head.num_classes
        for metric in runner.val_loop.evaluator.metrics:
            topk = getattr(metric, 'topk', None) or (1, )
            if max(topk) > classes:
                raise ValueError(
                    f'val_evaluator: top-{max(topk)} accuracy is undefined '
                    f'for {classes} classes; set val_evaluator.topk=1 and '
                    'test_evaluator.topk=1')

    @staticmethod
    def _check_labels(name: str, dataset, num_classes: int) -> None:
        try:
            count = count_classes(dataset)
        except ValueError as error:
            raise ValueError(f'the {name} data: {error}') from error
        # An annotation file may not contain the last classes.
        listed = dataset.metainfo.get('classes')
        if count > num_classes or (listed and count != num_classes):
            raise ValueError(
                f'the {name} data has {count} classes, but the head has '
                f'num_classes={num_classes}; set model.head.num_classes and '
                f'data_preprocessor.num_classes to {count}')
