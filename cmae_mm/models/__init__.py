import importlib
from typing import TYPE_CHECKING

from ..dependencies import import_on_use

if TYPE_CHECKING:
    from .backbones import (SimMIMViT, TransferConvViTDet, TransferViT,
                            TransferViTDet)
    from .cmae import CMAE, MomentumTarget
    from .convvit import ConvViT, TransferConvViT
    from .data_preprocessors import (ChannelClsDataPreprocessor,
                                     ChannelDataPreprocessor,
                                     TwoViewDataPreprocessor)
    from .heads import CMAEContrastiveHead, CMAEHead, CMAEReconstructionHead
    from .masked_encoders import (BlockMasking, CMAEConvViT, CMAEViT,
                                  split_by_mask)
    from .necks import CMAENeck, SimpleFPN

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEContrastiveHead', 'CMAEConvViT', 'CMAEHead',
    'CMAENeck', 'CMAEReconstructionHead', 'CMAEViT',
    'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor', 'ConvViT',
    'MomentumTarget', 'SimMIMViT', 'SimpleFPN', 'TransferConvViT',
    'TransferConvViTDet', 'TransferViT', 'TransferViTDet',
    'TwoViewDataPreprocessor', 'split_by_mask'
]

# Registered classes by module.
_MODULES = {
    'backbones': ('SimMIMViT', 'TransferConvViTDet', 'TransferViT',
                  'TransferViTDet'),
    'cmae': ('CMAE', 'MomentumTarget'),
    'convvit': ('ConvViT', 'TransferConvViT'),
    'data_preprocessors': ('ChannelClsDataPreprocessor',
                           'ChannelDataPreprocessor',
                           'TwoViewDataPreprocessor'),
    'heads': ('CMAEContrastiveHead', 'CMAEHead', 'CMAEReconstructionHead'),
    'masked_encoders': ('BlockMasking', 'CMAEConvViT', 'CMAEViT',
                        'split_by_mask'),
    'necks': ('CMAENeck', 'SimpleFPN'),
}

__getattr__ = import_on_use(__name__, _MODULES)


def register() -> None:
    """Register all classes."""
    for module in _MODULES:
        importlib.import_module(f'.{module}', __name__)
