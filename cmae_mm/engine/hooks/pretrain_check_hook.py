"""Looks, before the first step, for settings that cannot train."""
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from .step_seed_hook import StepSeedHook
from .unwrap import unwrapped_model


@HOOKS.register_module()
class PretrainCheckHook(Hook):
    """Check batch and data set before pre-training starts.

    Raises:
        ValueError: If the batch over all GPUs leaves InfoNCE without
            negatives, the data set is smaller than one batch, or all
            processes would draw the same masks.
    """

    def before_train(self, runner) -> None:
        """Check the batch size and the size of the data set."""
        model = unwrapped_model(runner)
        loader = runner.train_dataloader
        world_size = get_world_size()
        if (world_size > 1
                and not any(isinstance(h, StepSeedHook) for h in runner.hooks)
                and not runner._randomness_cfg.get('diff_rank_seed')):
            raise ValueError(
                f'all {world_size} processes would draw the same masks; set '
                "default_hooks.step_seed=dict(type='StepSeedHook')")
        total = loader.batch_size * world_size
        contrastive = getattr(model.head, 'contrastive', None)
        if (contrastive is not None and contrastive.loss_style == 'infonce'
                and total < 2):
            raise ValueError(
                'InfoNCE needs negatives, but train_dataloader.batch_size='
                f'{loader.batch_size} on {world_size} process(es) is one image'
                ' in total; use a batch of 2 or more, or '
                "model.head.contrastive.loss_style='byol'")
        # An infinite sampler fills a batch however few images there are.
        endless = isinstance(loader.sampler, InfiniteSampler)
        if len(loader) == 0 and not endless:
            raise ValueError(
                f'the data set has {len(loader.dataset)} images, fewer than '
                f'one batch of {loader.batch_size} on {world_size} '
                'process(es), so that no step would be made; lower '
                'train_dataloader.batch_size or add images')
