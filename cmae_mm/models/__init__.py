from .backbones import (
    ConvViT,
    SimMIMViT,
    TransferConvViT,
    TransferConvViTDet,
    TransferViT,
    TransferViTDet,
)
from .data_preprocessors import (
    ChannelClsDataPreprocessor,
    ChannelDataPreprocessor,
    TwoViewDataPreprocessor,
)
from .heads import (
    CMAEContrastiveHead,
    CMAEHead,
    CMAEQueueHead,
    CMAEReconstructionHead,
)
from .necks import CMAENeck, SimpleFPN
from .selfsup import (
    CMAE,
    BlockMasking,
    CMAEConvViT,
    CMAEViT,
    MomentumTarget,
    split_by_mask,
)

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEContrastiveHead', 'CMAEConvViT', 'CMAEHead',
    'CMAENeck', 'CMAEQueueHead', 'CMAEReconstructionHead', 'CMAEViT',
    'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor', 'ConvViT',
    'MomentumTarget', 'SimMIMViT', 'SimpleFPN', 'TransferConvViT',
    'TransferConvViTDet', 'TransferViT', 'TransferViTDet',
    'TwoViewDataPreprocessor', 'split_by_mask'
]
