"""A feature pyramid in full precision, whatever training is in."""
from typing import Sequence, Tuple

from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32FPN(FPN):
    """mmdetection's ``FPN`` with levels in float32.

    Boxes are cast to the features' type, and would be rounded to whole pixels
    and more in bfloat16.
    """

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Make the levels.

        Args:
            inputs (Sequence[Tensor]): A backbone's maps, (N, C, H, W), each of
                half the sides of the one before.

        Returns:
            Tuple[Tensor, ...]: The levels, (N, D, H, W) and less, in float32.
        """
        return tuple(level.float() for level in super().forward(inputs))
