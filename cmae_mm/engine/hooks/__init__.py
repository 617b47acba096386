from .checkpoint_hook import AtomicCheckpointHook
from .knn_hook import KNNHook
from .online_probe_hook import OnlineProbeHook
from .preemption_hook import PreemptionHook
from .prefetch_hook import PrefetchHook
from .pretrain_check_hook import PretrainCheckHook
from .skipped_step_hook import SkippedStepHook
from .step_seed_hook import StepSeedHook
from .target_update_hook import TargetUpdateHook
from .transfer_check_hook import TransferCheckHook
from .watchdog_hook import WatchdogHook

__all__ = [
    'AtomicCheckpointHook', 'KNNHook', 'OnlineProbeHook', 'PreemptionHook',
    'PrefetchHook', 'PretrainCheckHook', 'SkippedStepHook', 'StepSeedHook',
    'TargetUpdateHook', 'TransferCheckHook', 'WatchdogHook'
]
