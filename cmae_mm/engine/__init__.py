from .hooks import (
    AtomicCheckpointHook,
    KNNHook,
    OnlineProbeHook,
    PreemptionHook,
    PrefetchHook,
    PretrainCheckHook,
    SkippedStepHook,
    StepSeedHook,
    TargetUpdateHook,
    TransferCheckHook,
)
from .loops import ResumableEpochLoop, ResumableIterLoop
from .optimizers import (
    AutoAmpOptimWrapper,
    BackboneLayerDecayConstructor,
    GroupedOptimWrapperConstructor,
    NonFiniteError,
)
from .resuming import allow_log_history
from .runner import ResumableRunner

allow_log_history()

__all__ = [
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'GroupedOptimWrapperConstructor',
    'KNNHook', 'NonFiniteError', 'OnlineProbeHook', 'PreemptionHook',
    'PrefetchHook', 'PretrainCheckHook', 'ResumableEpochLoop',
    'ResumableIterLoop', 'ResumableRunner', 'SkippedStepHook', 'StepSeedHook',
    'TargetUpdateHook', 'TransferCheckHook'
]
