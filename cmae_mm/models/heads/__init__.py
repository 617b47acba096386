from .cmae_head import CMAEContrastiveHead, CMAEHead
from .cmae_reconstruction_head import CMAEReconstructionHead

__all__ = ['CMAEContrastiveHead', 'CMAEHead', 'CMAEReconstructionHead']
