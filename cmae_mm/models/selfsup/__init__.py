from .cmae import CMAE, BlockMasking, CMAEViT, MomentumTarget, split_by_mask

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEViT', 'MomentumTarget', 'split_by_mask'
]
