from .hooks import (
    KNNHook,
    OnlineProbeHook,
    PrefetchHook,
    PretrainCheckHook,
    TargetUpdateHook,
    TransferCheckHook,
)
from .optimizers import (
    AutoAmpOptimWrapper,
    BackboneLayerDecayConstructor,
    GroupedOptimWrapperConstructor,
)
from .resuming import allow_log_history
from .runner import ResumableRunner

allow_log_history()

__all__ = [
    'AutoAmpOptimWrapper', 'BackboneLayerDecayConstructor',
    'GroupedOptimWrapperConstructor', 'KNNHook',
    'OnlineProbeHook', 'PrefetchHook', 'PretrainCheckHook',
    'ResumableRunner', 'TargetUpdateHook', 'TransferCheckHook'
]
