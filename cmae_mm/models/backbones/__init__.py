from .cmae_vit import CMAEViT
from .transfer_vit import TransferViT

__all__ = ['CMAEViT', 'TransferViT']
