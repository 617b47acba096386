"""Layer decay for models that have a backbone beside other parts."""
from functools import partial
from typing import Callable, List, Optional

from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer decay, for detectors and segmentors too.

    The depth of a parameter is the backbone's ``get_layer_depth``; necks and
    heads are the last layer, which learns at the full rate. See mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor`` for ``paramwise_cfg``.

    Raises:
        ValueError: If the backbone cannot tell the depth of its layers.
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
            backbone = getattr(module, 'backbone', None)
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
