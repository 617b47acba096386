from .cmae import CMAE, BlockMasking, CMAEViT, MomentumTarget, split_by_mask
from .cmae_convvit import CMAEConvViT

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEConvViT', 'CMAEViT', 'MomentumTarget',
    'split_by_mask'
]
