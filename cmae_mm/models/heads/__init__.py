from .cmae_head import CMAEHead
from .contrastive_head import CMAEContrastiveHead

__all__ = ['CMAEContrastiveHead', 'CMAEHead']
