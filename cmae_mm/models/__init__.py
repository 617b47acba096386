from .backbones.convvit import ConvViT, TransferConvViT
from .backbones.convvit_det import TransferConvViTDet
from .backbones.vit import SimMIMViT, TransferViT, TransferViTDet
from .data_preprocessors.channel_data_preprocessor import (
    ChannelClsDataPreprocessor,
    ChannelDataPreprocessor,
)
from .data_preprocessors.two_view_data_preprocessor import (
    TwoViewDataPreprocessor,
)
from .heads.cmae_head import (
    CMAEContrastiveHead,
    CMAEHead,
    CMAEQueueHead,
    CMAEReconstructionHead,
)
from .necks.cmae_neck import CMAENeck
from .necks.simple_fpn import SimpleFPN
from .selfsup.cmae import CMAE, MomentumTarget
from .selfsup.masked_encoders import (
    BlockMasking,
    CMAEConvViT,
    CMAEViT,
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
