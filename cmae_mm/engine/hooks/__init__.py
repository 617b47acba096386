from .pretrain_check_hook import PretrainCheckHook
from .target_update_hook import TargetUpdateHook

__all__ = ['PretrainCheckHook', 'TargetUpdateHook']
