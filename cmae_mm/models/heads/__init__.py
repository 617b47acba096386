from .cmae_head import CMAEContrastiveHead, CMAEHead

__all__ = ['CMAEContrastiveHead', 'CMAEHead']
