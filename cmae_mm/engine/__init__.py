from .hooks import PretrainCheckHook, TargetUpdateHook
from .optimizers import AutoAmpOptimWrapper, GroupedOptimWrapperConstructor

__all__ = [
    'AutoAmpOptimWrapper', 'GroupedOptimWrapperConstructor',
    'PretrainCheckHook', 'TargetUpdateHook'
]
