from .hooks import (
    AtomicCheckpointHook,
    HealthHook,
    KNNHook,
    OnlineProbeHook,
    PreemptionHook,
    PrefetchHook,
    PretrainCheckHook,
    ProgressHook,
    ReconstructionHook,
    SkippedStepHook,
    StepSeedHook,
    TargetUpdateHook,
    TransferCheckHook,
)
from .loops import ResumableEpochLoop, ResumableIterLoop
from .optim_wrapper import (
    AutoAmpOptimWrapper,
    BackboneLayerDecayConstructor,
    GroupedOptimWrapperConstructor,
    NonFiniteError,
)
from .runner import ResumableRunner, ShardedRunner

__all__ = [
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'GroupedOptimWrapperConstructor',
    'HealthHook', 'KNNHook', 'NonFiniteError', 'OnlineProbeHook',
    'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook', 'ProgressHook',
    'ReconstructionHook', 'ResumableEpochLoop', 'ResumableIterLoop',
    'ResumableRunner', 'ShardedRunner', 'SkippedStepHook', 'StepSeedHook',
    'TargetUpdateHook', 'TransferCheckHook',
]
