from .knn_hook import KNNHook
from .online_probe_hook import OnlineProbeHook
from .prefetch_hook import PrefetchHook
from .pretrain_check_hook import PretrainCheckHook
from .target_update_hook import TargetUpdateHook
from .transfer_check_hook import TransferCheckHook

__all__ = [
    'KNNHook', 'OnlineProbeHook', 'PrefetchHook', 'PretrainCheckHook',
    'TargetUpdateHook', 'TransferCheckHook'
]
