from .check_hooks import PretrainCheckHook, TransferCheckHook
from .checkpoint_hook import AtomicCheckpointHook
from .evaluation_hooks import (
    KNNHook,
    OnlineProbeHook,
    ReconstructionHook,
)
from .health_hook import HealthHook
from .preemption_hook import PreemptionHook
from .step_hooks import (
    PrefetchHook,
    ProgressHook,
    SkippedStepHook,
    StepSeedHook,
    TargetUpdateHook,
)

__all__ = [
    'AtomicCheckpointHook', 'HealthHook', 'KNNHook', 'OnlineProbeHook',
    'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook', 'ProgressHook',
    'ReconstructionHook', 'SkippedStepHook', 'StepSeedHook',
    'TargetUpdateHook', 'TransferCheckHook'
]
