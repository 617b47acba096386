"""Feature pyramid from the feature map of a plain transformer."""
from collections.abc import Sequence

from mmengine.model import BaseModule
from mmpretrain.models.utils import LayerNorm2d
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Simple feature pyramid (ViTDet, arXiv 2203.16527).

    The last feature map, of stride P, is resized to strides P/4, P/2, P and 2P
    by separate layers; further levels are subsampled from the last.

    Args:
        in_channels (int): Width D of the encoder, a multiple of 4.
        out_channels (int): Number of channels of each level. Defaults to 256.
        num_outs (int): Number of levels, 4 or more. Defaults to 5.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If ``in_channels`` or ``num_outs`` is out of range.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int = 256,
                 num_outs: int = 5,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if in_channels % 4 or num_outs < 4:
            raise ValueError(
                'in_channels must be a multiple of 4 and num_outs 4 or more, '
                f'but got {in_channels} and {num_outs}')
        half, quarter = in_channels // 2, in_channels // 4
        rescale = [
            (nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                LayerNorm2d(half, eps=1e-6), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2)), quarter),
            (nn.ConvTranspose2d(in_channels, half, 2, stride=2), half),
            (nn.Identity(), in_channels),
            (nn.MaxPool2d(2), in_channels),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                layers,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1,
                          bias=False), LayerNorm2d(out_channels, eps=1e-6))
            for layers, channels in rescale)
        self.subsample = nn.MaxPool2d(1, stride=2)
        self.num_outs = num_outs

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs (Sequence[Tensor]): Feature maps, (N, D, H, W); the last one
                is used.

        Returns:
            tuple[Tensor, ...]: The levels, (N, C, 4H, 4W), (N, C, 2H, 2W),
            (N, C, H, W), (N, C, H/2, W/2)..., in float32.
        """
        # Boxes are cast to the dtype of the features; bfloat16 would round
        # them to whole pixels or worse.
        outs = [level(inputs[-1]).float() for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(self.subsample(outs[-1]))
        return tuple(outs)
