from .hooks import PretrainCheckHook, TargetUpdateHook
from .optimizers import AutoAmpOptimWrapper, GroupedOptimWrapperConstructor
from .resuming import allow_log_history

allow_log_history()

__all__ = [
    'AutoAmpOptimWrapper', 'GroupedOptimWrapperConstructor',
    'PretrainCheckHook', 'TargetUpdateHook'
]
