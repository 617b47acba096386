from .hooks import (
    AtomicCheckpointHook,
    KNNHook,
    OnlineProbeHook,
    PreemptionHook,
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
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'GroupedOptimWrapperConstructor',
    'KNNHook', 'OnlineProbeHook', 'PreemptionHook', 'PrefetchHook',
    'PretrainCheckHook', 'ResumableRunner', 'TargetUpdateHook',
    'TransferCheckHook'
]
