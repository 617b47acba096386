from .backbones import TransferViT, TransferViTDet
from .heads import CMAEContrastiveHead, CMAEHead
from .necks import CMAENeck, SimpleFPN
from .selfsup import (
    CMAE,
    BlockMasking,
    CMAEViT,
    MomentumTarget,
    split_by_mask,
)
from .utils import (
    ChannelClsDataPreprocessor,
    ChannelDataPreprocessor,
    TwoViewDataPreprocessor,
)

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEContrastiveHead', 'CMAEHead', 'CMAENeck',
    'CMAEViT', 'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor',
    'MomentumTarget', 'SimpleFPN', 'TransferViT', 'TransferViTDet',
    'TwoViewDataPreprocessor', 'split_by_mask'
]
