from .constructors import (
    BackboneLayerDecayConstructor,
    GroupedOptimWrapperConstructor,
)
from .optim_wrapper import AutoAmpOptimWrapper, skipping_steps
from .step_guard import NonFiniteError

__all__ = [
    'AutoAmpOptimWrapper', 'BackboneLayerDecayConstructor',
    'GroupedOptimWrapperConstructor', 'NonFiniteError', 'skipping_steps'
]
