from .frozen_model import build_frozen_model
from .fully_shard_strategy import FullyShardStrategy
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
)
from .loops import ResumableEpochLoop, ResumableIterLoop
from .optimizers import (
    AutoAmpOptimWrapper,
    BackboneLayerDecayConstructor,
    GroupedOptimWrapperConstructor,
    NonFiniteError,
)
from .runner import ResumableRunner
from .sharded_runner import ShardedRunner

__all__ = [
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'FullyShardStrategy',
    'GroupedOptimWrapperConstructor', 'HealthHook', 'KNNHook',
    'NonFiniteError', 'OnlineProbeHook', 'PreemptionHook', 'PrefetchHook',
    'PretrainCheckHook', 'ReconstructionHook', 'ResumableEpochLoop',
    'ResumableIterLoop', 'ResumableRunner', 'ShardedRunner', 'SkippedStepHook',
    'StepSeedHook', 'TargetUpdateHook', 'TransferCheckHook',
    'build_frozen_model'
]
