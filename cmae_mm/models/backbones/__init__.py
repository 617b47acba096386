from .cmae_vit import CMAEViT
from .transfer_vit import TransferViT
from .transfer_vit_det import TransferViTDet

__all__ = ['CMAEViT', 'TransferViT', 'TransferViTDet']
