from .backbones import TransferViT, TransferViTDet
from .heads import CMAEContrastiveHead, CMAEHead, CMAEQueueHead
from .necks import CMAENeck, SimpleFPN
from .selfsup import (
    CMAE,
    BlockMasking,
    CMAEViT,
    MomentumTarget,
    split_by_mask,
)
from .utils import TwoViewDataPreprocessor

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEContrastiveHead', 'CMAEHead', 'CMAENeck',
    'CMAEQueueHead', 'CMAEViT', 'MomentumTarget', 'SimpleFPN', 'TransferViT',
    'TransferViTDet', 'TwoViewDataPreprocessor', 'split_by_mask'
]
