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
from .runner import ResumableRunner

__all__ = [
    'AutoAmpOptimWrapper', 'BackboneLayerDecayConstructor',
    'GroupedOptimWrapperConstructor', 'KNNHook',
    'OnlineProbeHook', 'PrefetchHook', 'PretrainCheckHook',
    'ResumableRunner', 'TargetUpdateHook', 'TransferCheckHook'
]
