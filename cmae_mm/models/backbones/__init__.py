from .cmae_vit import CMAEViT

__all__ = ['CMAEViT']
