from .frozen_model import build_frozen_model
from .hooks import (
    AtomicCheckpointHook,
    HealthHook,
    KNNHook,
    OnlineProbeHook,
    PreemptionHook,
    PrefetchHook,
    PretrainCheckHook,
    ReconstructionHook,
    SkippedStepHook,
    StepSeedHook,
    TargetUpdateHook,
    TransferCheckHook,
    WatchdogHook,
)
from .loops import ResumableEpochLoop, ResumableIterLoop
from .optimizers import (
    AutoAmpOptimWrapper,
    BackboneLayerDecayConstructor,
    GroupedOptimWrapperConstructor,
    NonFiniteError,
)
from .runner import ResumableRunner

__all__ = [
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'GroupedOptimWrapperConstructor',
    'HealthHook', 'KNNHook', 'NonFiniteError', 'OnlineProbeHook',
    'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook',
    'ReconstructionHook', 'ResumableEpochLoop', 'ResumableIterLoop',
    'ResumableRunner', 'SkippedStepHook', 'StepSeedHook', 'TargetUpdateHook',
    'TransferCheckHook', 'WatchdogHook', 'build_frozen_model'
]
