from .hooks import (
    KNNHook,
    OnlineProbeHook,
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
    'AutoAmpOptimWrapper', 'BackboneLayerDecayConstructor',
    'GroupedOptimWrapperConstructor', 'KNNHook', 'NonFiniteError',
    'OnlineProbeHook', 'PrefetchHook', 'PretrainCheckHook',
    'ResumableEpochLoop', 'ResumableIterLoop', 'ResumableRunner',
    'SkippedStepHook', 'StepSeedHook', 'TargetUpdateHook', 'TransferCheckHook'
]
