"""Region proposals in full precision, whatever training is in."""
from typing import Tuple

from mmdet.models.dense_heads import RPNHead
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """mmdetection's ``RPNHead`` with float32 scores and offsets.

    In bfloat16 scores of thousands of anchors would be rounded to a few
    hundred values before they are ranked, and mmcv's NMS does not take them
    on every device.
    """

    def forward_single(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Score one level.

        Args:
            x (Tensor): Features, (N, C, H, W).

        Returns:
            Tuple[Tensor, Tensor]: Scores (N, A, H, W) and box offsets
            (N, 4A, H, W) of A anchors, in float32.
        """
        scores, offsets = super().forward_single(x)
        return scores.float(), offsets.float()
