from .cmae_head import CMAEContrastiveHead, CMAEHead
from .queue_head import CMAEQueueHead

__all__ = ['CMAEContrastiveHead', 'CMAEHead', 'CMAEQueueHead']
