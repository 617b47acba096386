"""Parameter groups: merged ones, and layer decay of backbones."""
import logging
from collections import defaultdict
from functools import partial
from typing import Any, Callable, Dict, List, Optional

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with equal parameter groups merged.

    mmengine makes one group per parameter, several hundred for a ViT, each
    updated by its own kernels, and logs several lines for each. With the same
    ``paramwise_cfg``, this one makes a group and a log line for each different
    setting.
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

        merged: Dict[tuple, list] = defaultdict(list)
        for group in single:
            parameters = group.pop('params')
            merged[tuple(sorted(group.items()))].extend(parameters)
        for settings, parameters in merged.items():
            params.append(dict(params=parameters, **dict(settings)))
            count = sum(p.numel() for p in parameters)
            described = ', '.join(f'{k}={v:g}' for k, v in settings)
            print_log(
                f'Optimizer group of {len(parameters)} parameters '
                f'({count:,} values): {described or "defaults"}',
                logger='current')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer decay, for detectors and segmentors too.

    The depth of a parameter is the backbone's ``get_layer_depth``; necks and
    heads are the last layer, at the full learning rate. See mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor`` for ``paramwise_cfg``.

    Raises:
        ValueError: If the backbone has no ``get_layer_depth``.
    """

    def add_params(self,
                   params: List[dict],
                   module: nn.Module,
                   prefix: str = '',
                   get_layer_depth: Optional[Callable] = None,
                   **kwargs) -> None:
        """Add all parameters of a model, each with its rate and decay.

        Args:
            params (List[dict]): The groups, modified in place.
            module (nn.Module): The model.
            prefix (str): Prefix of names, in the recursion alone.
            get_layer_depth (Callable, optional): Depth of a parameter by its
                name, in the recursion alone.
            **kwargs: Further arguments of the recursion.
        """
        if get_layer_depth is None:
            backbone: Any = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise ValueError(
                    'layer decay needs a model whose backbone has '
                    'get_layer_depth, as TransferViT and TransferViTDet, but '
                    f'the backbone of {type(module).__name__} is '
                    f'{type(backbone).__name__}')
            get_layer_depth = partial(
                backbone.get_layer_depth, prefix='backbone.')
        super().add_params(
            params,
            module,
            prefix=prefix,
            get_layer_depth=get_layer_depth,
            **kwargs)
