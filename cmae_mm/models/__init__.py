from .backbones import CMAEViT, TransferViT, TransferViTDet
from .heads import CMAEContrastiveHead, CMAEHead
from .necks import CMAENeck, SimpleFPN
from .selfsup import CMAE
from .utils import MomentumTarget, TwoViewDataPreprocessor

__all__ = [
    'CMAE', 'CMAEContrastiveHead', 'CMAEHead', 'CMAENeck', 'CMAEViT',
    'MomentumTarget', 'SimpleFPN', 'TransferViT', 'TransferViTDet',
    'TwoViewDataPreprocessor'
]
