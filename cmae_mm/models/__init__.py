import importlib
from typing import TYPE_CHECKING

from ..dependencies import import_on_use

if TYPE_CHECKING:
    from .backbones.convvit import ConvViT, TransferConvViT
    from .backbones.convvit_det import TransferConvViTDet
    from .backbones.vit import SimMIMViT, TransferViT, TransferViTDet
    from .data_preprocessors.channel_data_preprocessor import (
        ChannelClsDataPreprocessor, ChannelDataPreprocessor)
    from .data_preprocessors.two_view_data_preprocessor import \
        TwoViewDataPreprocessor
    from .heads.cmae_head import (CMAEContrastiveHead, CMAEHead, CMAEQueueHead,
                                  CMAEReconstructionHead)
    from .necks.cmae_neck import CMAENeck
    from .necks.simple_fpn import SimpleFPN
    from .selfsup.cmae import CMAE, MomentumTarget
    from .selfsup.masked_encoders import (BlockMasking, CMAEConvViT, CMAEViT,
                                          split_by_mask)

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEContrastiveHead', 'CMAEConvViT', 'CMAEHead',
    'CMAENeck', 'CMAEQueueHead', 'CMAEReconstructionHead', 'CMAEViT',
    'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor', 'ConvViT',
    'MomentumTarget', 'SimMIMViT', 'SimpleFPN', 'TransferConvViT',
    'TransferConvViTDet', 'TransferViT', 'TransferViTDet',
    'TwoViewDataPreprocessor', 'split_by_mask'
]

# Registered classes by module.
_MODULES = {
    'backbones.convvit': ('ConvViT', 'TransferConvViT'),
    'backbones.convvit_det': ('TransferConvViTDet', ),
    'backbones.vit': ('SimMIMViT', 'TransferViT', 'TransferViTDet'),
    'data_preprocessors.channel_data_preprocessor': (
        'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor'),
    'data_preprocessors.two_view_data_preprocessor': (
        'TwoViewDataPreprocessor', ),
    'heads.cmae_head': ('CMAEContrastiveHead', 'CMAEHead', 'CMAEQueueHead',
                        'CMAEReconstructionHead'),
    'necks.cmae_neck': ('CMAENeck', ),
    'necks.simple_fpn': ('SimpleFPN', ),
    'selfsup.cmae': ('CMAE', 'MomentumTarget'),
    'selfsup.masked_encoders': ('BlockMasking', 'CMAEConvViT', 'CMAEViT',
                                'split_by_mask'),
}

__getattr__ = import_on_use(__name__, _MODULES)


def register() -> None:
    """Register all classes."""
    for module in _MODULES:
        importlib.import_module(f'.{module}', __name__)
