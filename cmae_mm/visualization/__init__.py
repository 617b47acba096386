from .backends import MLflowBackend, WandbBackend
from .loss_curve import read_scalars, save_loss_curve
from .reconstruction import (
    reconstruct,
    reconstruction_columns,
    save_reconstructions,
)

__all__ = [
    'MLflowBackend', 'WandbBackend', 'read_scalars', 'reconstruct',
    'reconstruction_columns', 'save_loss_curve', 'save_reconstructions'
]
