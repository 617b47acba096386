from .hooks.check_hooks import PretrainCheckHook, TransferCheckHook
from .hooks.checkpoint_hook import AtomicCheckpointHook
from .hooks.evaluation_hooks import (KNNHook, OnlineProbeHook,
                                     ReconstructionHook)
from .hooks.health_hook import HealthHook
from .hooks.step_hooks import (PreemptionHook, PrefetchHook, ProgressHook,
                               SkippedStepHook, StepSeedHook, TargetUpdateHook)
from .loops import ResumableEpochLoop, ResumableIterLoop
from .optim_wrapper import (AutoAmpOptimWrapper, BackboneLayerDecayConstructor,
                            GroupedOptimWrapperConstructor, NonFiniteError)
from .runner import ResumableRunner, ShardedRunner
from .vis_backends import MLflowBackend, WandbBackend

__all__ = [
    'AtomicCheckpointHook', 'AutoAmpOptimWrapper',
    'BackboneLayerDecayConstructor', 'GroupedOptimWrapperConstructor',
    'HealthHook', 'KNNHook', 'MLflowBackend', 'NonFiniteError',
    'OnlineProbeHook', 'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook',
    'ProgressHook', 'ReconstructionHook', 'ResumableEpochLoop',
    'ResumableIterLoop', 'ResumableRunner', 'ShardedRunner', 'SkippedStepHook',
    'StepSeedHook', 'TargetUpdateHook', 'TransferCheckHook', 'WandbBackend',
]
