from .checkpoint_hook import AtomicCheckpointHook
from .health_hook import HealthHook
from .knn_hook import KNNHook
from .online_probe_hook import OnlineProbeHook
from .preemption_hook import PreemptionHook
from .prefetch_hook import PrefetchHook
from .pretrain_check_hook import PretrainCheckHook
from .progress_hook import ProgressHook
from .reconstruction_hook import ReconstructionHook
from .skipped_step_hook import SkippedStepHook
from .step_seed_hook import StepSeedHook
from .target_update_hook import TargetUpdateHook
from .transfer_check_hook import TransferCheckHook

__all__ = [
    'AtomicCheckpointHook', 'HealthHook', 'KNNHook', 'OnlineProbeHook',
    'PreemptionHook', 'PrefetchHook', 'PretrainCheckHook', 'ProgressHook',
    'ReconstructionHook', 'SkippedStepHook', 'StepSeedHook',
    'TargetUpdateHook', 'TransferCheckHook'
]
