from .convvit import ConvViT, TransferConvViT
from .convvit_det import TransferConvViTDet
from .vit import SimMIMViT, TransferViT, TransferViTDet

__all__ = [
    'ConvViT', 'SimMIMViT', 'TransferConvViT', 'TransferConvViTDet',
    'TransferViT', 'TransferViTDet'
]
