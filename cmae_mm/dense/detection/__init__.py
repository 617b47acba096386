"""What transfer to detection needs beside mmdetection.

Not part of ``import cmae_mm``: configs import it, by ``custom_imports =
dict(imports=['cmae_mm.dense.detection'])``.
"""
from ...dependencies import require_dense

require_dense('mmdet', extra='det')

from .detection_check_hook import DetectionCheckHook  # noqa: E402
from .float32_fpn import Float32FPN  # noqa: E402
from .float32_rpn_head import Float32RPNHead  # noqa: E402

__all__ = ['DetectionCheckHook', 'Float32FPN', 'Float32RPNHead']
