from .auto_amp_optim_wrapper import AutoAmpOptimWrapper, skipping_steps
from .backbone_layer_decay_constructor import BackboneLayerDecayConstructor
from .grouped_optim_wrapper_constructor import GroupedOptimWrapperConstructor
from .step_guard import NonFiniteError

__all__ = [
    'AutoAmpOptimWrapper', 'BackboneLayerDecayConstructor',
    'GroupedOptimWrapperConstructor', 'NonFiniteError',
    'skipping_steps'
]
