"""What transfer to semantic segmentation needs beside mmsegmentation.

Not part of ``import cmae_mm``: configs import it, by ``custom_imports =
dict(imports=['cmae_mm.dense.segmentation'])``.
"""
from ...dependencies import require_dense

require_dense('mmseg', extra='seg')

from .category_map_dataset import (  # noqa: E402
    CategoryMapDataset,
    LoadCategoryMap,
)
from .segmentation_check_hook import SegmentationCheckHook  # noqa: E402

__all__ = ['CategoryMapDataset', 'LoadCategoryMap', 'SegmentationCheckHook']
