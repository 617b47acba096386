from .check_hooks import PretrainCheckHook, TransferCheckHook
from .checkpoint_hook import AtomicCheckpointHook
from .evaluation_hooks import KNNHook, ReconstructionHook
from .health_hook import HealthHook
from .online_probe_hook import OnlineProbeHook
from .preemption_hook import PreemptionHook
from .step_hooks import (
    PrefetchHook,
    ProgressHook,
    SkippedStepHook,
    StepSeedHook,
)
from .target_update_hook import TargetUpdateHook

__all__ = [
    'AtomicCheckpointHook', 'HealthHook', 'KNNHook', 'OnlineProbeHook',
    'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook', 'ProgressHook',
    'ReconstructionHook', 'SkippedStepHook', 'StepSeedHook',
    'TargetUpdateHook', 'TransferCheckHook'
]
