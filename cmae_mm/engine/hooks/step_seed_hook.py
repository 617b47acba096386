"""Draws of a training step that follow from its number."""
from typing import Optional

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...datasets.samplers import mix, seed_generators


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed all generators of the process before each iteration.

    Masks, dropout, drop path, mixup and whatever else an iteration draws then
    follow from the run's seed, the rank and the number of the iteration:
    ranks draw differently, and a resumed run draws what it would have drawn
    had it not been stopped, whatever validation or other hooks have drawn in
    between. Start weights and samplers, which must agree between ranks, do
    not: they draw before the first iteration, from ``randomness.seed``.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Seed ``random``, numpy, and torch on the CPU and all devices."""
        seed = mix(runner.seed, get_rank(), runner.iter)
        seed_generators(seed)
        torch.manual_seed(seed)
