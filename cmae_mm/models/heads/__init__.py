from .cmae_head import (
    CMAEContrastiveHead,
    CMAEHead,
    CMAEQueueHead,
    CMAEReconstructionHead,
)

__all__ = [
    'CMAEContrastiveHead', 'CMAEHead', 'CMAEQueueHead',
    'CMAEReconstructionHead'
]
