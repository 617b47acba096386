from .flexible_runner import ResumableFlexibleRunner
from .frozen_model import build_frozen_model
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
from .strategies import FullyShardStrategy

__all__ = [
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'FullyShardStrategy',
    'GroupedOptimWrapperConstructor', 'KNNHook', 'NonFiniteError',
    'OnlineProbeHook', 'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook',
    'ResumableEpochLoop', 'ResumableFlexibleRunner', 'ResumableIterLoop',
    'ResumableRunner', 'SkippedStepHook', 'StepSeedHook', 'TargetUpdateHook',
    'TransferCheckHook', 'WatchdogHook', 'build_frozen_model'
]
