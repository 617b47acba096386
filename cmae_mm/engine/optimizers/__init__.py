from .auto_amp_optim_wrapper import AutoAmpOptimWrapper
from .backbone_layer_decay_constructor import BackboneLayerDecayConstructor
from .grouped_optim_wrapper_constructor import GroupedOptimWrapperConstructor

__all__ = [
    'AutoAmpOptimWrapper', 'BackboneLayerDecayConstructor',
    'GroupedOptimWrapperConstructor'
]
