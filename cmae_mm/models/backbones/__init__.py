from .transfer_vit import TransferViT
from .transfer_vit_det import TransferViTDet

__all__ = ['TransferViT', 'TransferViTDet']
