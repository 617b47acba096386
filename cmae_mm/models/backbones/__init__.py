from .convvit import ConvViT
from .simmim_vit import SimMIMViT
from .transfer_convvit import TransferConvViT
from .transfer_convvit_det import TransferConvViTDet
from .transfer_vit import TransferViT
from .transfer_vit_det import TransferViTDet

__all__ = [
    'ConvViT', 'SimMIMViT', 'TransferConvViT', 'TransferConvViTDet',
    'TransferViT', 'TransferViTDet'
]
