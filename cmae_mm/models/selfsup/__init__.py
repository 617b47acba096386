from .cmae import CMAE, MomentumTarget
from .masked_encoders import (
    BlockMasking,
    CMAEConvViT,
    CMAEViT,
    split_by_mask,
)

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEConvViT', 'CMAEViT', 'MomentumTarget',
    'split_by_mask'
]
