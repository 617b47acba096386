"""Patch embeddings of convolution stages, channels-last."""
from typing import NamedTuple, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from .old_torch import gelu


class PatchConv(nn.Conv2d):
    """A convolution whose stride is its kernel, on channels-last maps.

    Each output is made of one patch alone, so that leading dimensions may be
    anything: (*, H, W, C) to (*, H / P, W / P, D). It is computed as a linear
    layer, which is faster; the parameters are those of ``nn.Conv2d``.

    Args:
        in_channels (int): Number C of input channels.
        out_channels (int): Number D of output channels.
        side (int): Kernel and stride P. Defaults to 1.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 side: int = 1) -> None:
        super().__init__(in_channels, out_channels, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (*, H, W, C) to (*, H / P, W / P, D)."""
        side = self.kernel_size[0]
        if side > 1:
            x = x.unflatten(-3, (-1, side)).unflatten(-2, (-1, side))
            x = x.transpose(-4, -3).flatten(-3)  # (*, H/P, W/P, P*P*C)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(x, weight, self.bias)


class PatchEmbedding(nn.Module):
    """A patch convolution, LayerNorm over channels, and GELU.

    Args:
        in_channels (int): Number C of input channels.
        out_channels (int): Number D of output channels.
        side (int): Side P of a patch in cells of the input.
    """

    def __init__(self, in_channels: int, out_channels: int,
                 side: int) -> None:
        super().__init__()
        self.projection = PatchConv(in_channels, out_channels, side)
        self.norm = nn.LayerNorm(out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches, (*, H, W, C) to (*, H / P, W / P, D)."""
        return gelu(self.norm(self.projection(x)))


class TokenEmbedding(PatchEmbedding):
    """The last patch embedding, which ends in a linear layer.

    Args:
        in_channels (int): Number C of input channels.
        embed_dims (int): Width D of the tokens.
        side (int): Side of a patch in cells of the last convolution stage.
        grid (Tuple[int, int]): Height and width in tokens.
    """

    def __init__(self, in_channels: int, embed_dims: int, side: int,
                 grid: Tuple[int, int]) -> None:
        super().__init__(in_channels, embed_dims, side)
        self.linear = nn.Linear(embed_dims, embed_dims)
        self.init_out_size = grid  # what VisionTransformer asks for

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches, (*, H, W, C) to (*, H / P, W / P, D)."""
        return self.linear(super().forward(x))


class Embedded(NamedTuple):
    """What the transformer blocks start from, and what is added after them.

    Args:
        tokens (Tensor): Embedded patches with positions, x_v + p_v, (N, V, D).
        fused (Tensor, optional): Both convolution stages' outputs at these
            patches, brought to the width D, (N, V, D); None without fusion.
    """

    tokens: Tensor
    fused: Optional[Tensor]
