from .backbones import CMAEViT, TransferViT
from .heads import CMAEContrastiveHead, CMAEHead
from .necks import CMAENeck
from .selfsup import CMAE
from .utils import MomentumTarget, TwoViewDataPreprocessor

__all__ = [
    'CMAE', 'CMAEContrastiveHead', 'CMAEHead', 'CMAENeck', 'CMAEViT',
    'MomentumTarget', 'TransferViT', 'TwoViewDataPreprocessor'
]
