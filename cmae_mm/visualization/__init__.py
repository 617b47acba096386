from .loss_curve import read_scalars, save_loss_curve
from .reconstruction import reconstruction_columns, save_reconstructions

__all__ = [
    'read_scalars', 'reconstruction_columns', 'save_loss_curve',
    'save_reconstructions'
]
