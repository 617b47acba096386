"""Tells the optimizer wrapper what a step is made of."""
from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class SkippedStepHook(Hook):
    """Let warnings of skipped steps name the iteration and the images.

    See ``AutoAmpOptimWrapper``, which skips and counts them.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Note the batch, one of several where gradients accumulate."""
        guard = getattr(runner.optim_wrapper, 'guard', None)
        if guard is None:
            return
        if runner.optim_wrapper.begins_step():
            guard.samples = []
        guard.iteration = runner.iter + 1
        samples = data_batch.get('data_samples') if isinstance(
            data_batch, dict) else None
        if isinstance(samples, (list, tuple)):
            guard.samples.extend(samples)
