from .backbones import CMAEViT
from .heads import CMAEContrastiveHead, CMAEHead
from .necks import CMAENeck
from .selfsup import CMAE
from .utils import MomentumTarget

__all__ = [
    'CMAE', 'CMAEContrastiveHead', 'CMAEHead', 'CMAENeck', 'CMAEViT',
    'MomentumTarget'
]
