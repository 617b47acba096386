"""Looks, before the first step, for settings that cannot train."""
from mmengine.dist import get_world_size
from mmpretrain.registry import HOOKS
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from ..device import unwrapped_model
from ..run_checks import (
    check_one_batch,
    check_ranks_agree,
    check_target_moves,
)
from .broken_images_hook import BrokenImagesHook
from .step_seed_hook import StepSeedHook


@HOOKS.register_module()
class PretrainCheckHook(BrokenImagesHook):
    """Check batch, data set and target before pre-training starts.

    After each epoch it reports how many images were broken, and stops where
    these are too many.

    Raises:
        BrokenImagesError: In training, if more than ``max_broken`` of an
            epoch's images are broken.
        ValueError: If the batch over all GPUs leaves InfoNCE without
            negatives, or that of one process leaves BatchNorm nothing to
            normalise over; if the data set is smaller than one batch; if
            nothing moves the target; if all processes would draw the same
            masks; if the last batches of processes would differ in size; or
            if a queue of negatives is longer than the data set.
    """

    def before_train(self, runner) -> None:
        """Check what the first step would find."""
        self._check_batch(runner)
        self._check_shares(runner.train_dataloader)
        self._check_queue(runner)
        check_one_batch(runner.train_dataloader)
        check_target_moves(runner)
        self._check_draws(runner)

    @staticmethod
    def _check_draws(runner) -> None:
        world_size = get_world_size()
        if (world_size > 1
                and not any(isinstance(h, StepSeedHook) for h in runner.hooks)
                and not runner._randomness_cfg.get('diff_rank_seed')):
            raise ValueError(
                f'all {world_size} processes would draw the same masks; set '
                "default_hooks.step_seed=dict(type='StepSeedHook')")

    @staticmethod
    def _check_shares(loader) -> None:
        samples = check_ranks_agree(loader)
        if len(set(samples)) > 1 and not loader.drop_last:
            raise ValueError(
                'InfoNCE needs batches of one size on all processes, but they '
                f'would draw {samples} images in an epoch; leave '
                'train_dataloader.sampler.round_up out, or set '
                'train_dataloader.drop_last=True')

    @staticmethod
    def _check_queue(runner) -> None:
        head = getattr(unwrapped_model(runner).head, 'contrastive', None)
        length = getattr(head, 'queue_length', 0)
        loader = runner.train_dataloader
        images = len(loader.dataset)
        if length and length + loader.batch_size * get_world_size() > images:
            raise ValueError(
                f'head.contrastive.queue_length={length} and the batch are '
                f'more than the {images} images of the training data, so that '
                'images would be their own negatives; use a shorter queue')

    @staticmethod
    def _check_batch(runner) -> None:
        model = unwrapped_model(runner)
        batch = runner.train_dataloader.batch_size
        world_size = get_world_size()
        contrastive = getattr(model.head, 'contrastive', None)
        if (contrastive is not None and contrastive.loss_style == 'infonce'
                and batch * world_size < 2):
            raise ValueError(
                f'InfoNCE needs negatives, but train_dataloader.batch_size='
                f'{batch} on {world_size} process(es) is one image in total; '
                'use a batch of 2 or more')
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        if not norms or batch > 1:
            return
        if not all(isinstance(m, SyncBatchNorm) for m in norms):
            raise ValueError(
                'BatchNorm normalises over the images of one process, but '
                'train_dataloader.batch_size=1 is a single one; use 2 or more'
                ", or on several GPUs sync_bn='torch'")
        if world_size < 2:
            raise ValueError(
                'BatchNorm needs more images than one, but '
                'train_dataloader.batch_size=1 on 1 process is a single one; '
                'use 2 or more')
