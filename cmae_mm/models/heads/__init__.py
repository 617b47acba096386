from .cmae_head import CMAEContrastiveHead, CMAEHead
from .cmae_reconstruction_head import CMAEReconstructionHead
from .queue_head import CMAEQueueHead

__all__ = [
    'CMAEContrastiveHead', 'CMAEHead', 'CMAEQueueHead',
    'CMAEReconstructionHead'
]
