"""Parameter groups that an optimizer can work on in few kernels."""
import logging
from collections import defaultdict
from typing import List

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with equal parameter groups merged.

    mmengine makes one group per parameter, several hundred for a ViT, each
    updated by kernels of its own, and logs several lines for each. The same
    ``paramwise_cfg`` gives the same settings here, in as few groups as there
    are different settings, and a line of log for each.
    """

    def add_params(self, params: List[dict], module: nn.Module, **kwargs):
        """Add all trainable parameters of a module, merged into groups.

        Args:
            params (List[dict]): The groups, modified in place.
            module (nn.Module): The module.
            **kwargs: See ``DefaultOptimWrapperConstructor``; present in its
                recursion alone.
        """
        if kwargs:  # a recursive call from the base class
            return super().add_params(params, module, **kwargs)
        single: List[dict] = []
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            super().add_params(single, module)
        finally:
            logger.setLevel(level)

        merged = defaultdict(list)
        for group in single:
            settings = {k: v for k, v in group.items() if k != 'params'}
            merged[tuple(sorted(settings.items()))].extend(group['params'])
        for settings, parameters in merged.items():
            params.append(dict(params=parameters, **dict(settings)))
            count = sum(p.numel() for p in parameters)
            described = ', '.join(f'{k}={v:g}' for k, v in settings)
            print_log(
                f'Optimizer group of {len(parameters)} parameters '
                f'({count:,} values): {described or "defaults"}',
                logger='current')
