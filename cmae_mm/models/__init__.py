from .backbones import TransferViT, TransferViTDet
from .heads import (
    CMAEContrastiveHead,
    CMAEHead,
    CMAEReconstructionHead,
)
from .necks import CMAENeck, SimpleFPN
from .selfsup import (
    CMAE,
    BlockMasking,
    CMAEViT,
    MomentumTarget,
    split_by_mask,
)
from .utils import TwoViewDataPreprocessor

__all__ = [
    'CMAE', 'BlockMasking', 'CMAEContrastiveHead', 'CMAEHead', 'CMAENeck',
    'CMAEReconstructionHead', 'CMAEViT', 'MomentumTarget', 'SimpleFPN',
    'TransferViT', 'TransferViTDet', 'TwoViewDataPreprocessor', 'split_by_mask'
]
