"""Convolution stages on whole images or on visible patches only.

All maps are channels-last and consist of *cells*. Maps of whole images are (N,
H, W, C), cells of visible patches (N, V, s, s, C), where a patch covers s x s
cells. Only the depthwise convolution reads beyond a patch; visible cells are
scattered to a map of zeros for it and gathered again.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ..utils import gelu


class PatchConv(nn.Conv2d):
    """Convolution with equal kernel and stride, on channels-last maps.

    Each output depends on one patch only, so any leading dimensions are
    allowed: (*, H, W, C) to (*, H / P, W / P, D). It is computed as a linear
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
    """The last patch embedding, followed by a linear layer.

    Args:
        in_channels (int): Number C of input channels.
        embed_dims (int): Width D of the tokens.
        side (int): Side of a patch in cells of the last convolution stage.
        grid (tuple[int, int]): Height and width in tokens.
    """

    def __init__(self, in_channels: int, embed_dims: int, side: int,
                 grid: tuple[int, int]) -> None:
        super().__init__(in_channels, embed_dims, side)
        self.linear = nn.Linear(embed_dims, embed_dims)
        self.init_out_size = grid  # VisionTransformer reads it

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches, (*, H, W, C) to (*, H / P, W / P, D)."""
        return self.linear(super().forward(x))


class Embedded(NamedTuple):
    """Input of the transformer blocks, and features added to their output.

    Args:
        tokens (Tensor): Embedded patches with positions, x_v + p_v, (N, V, D).
        fused (Tensor, optional): Outputs of both convolution stages at these
            patches, projected to the width D, (N, V, D); None without fusion.
    """

    tokens: Tensor
    fused: Tensor | None


class VisibleCells(NamedTuple):
    """Positions of the cells of visible patches on a stage's maps.

    Args:
        places (Tensor): Indices into the flattened maps, (N * V * s * s, ),
            without duplicates.
        shape (tuple[int, int, int]): Number, height and width of the maps.
    """

    places: Tensor
    shape: tuple[int, int, int]


class ConvBlock(nn.Module):
    """A block of masked depthwise convolution and MLP.

    ``x = x + conv2(depthwise(m * conv1(norm1(x))))``, then
    ``x = x + mlp(norm2(x))``: m is 1 on visible patches and 0 on masked ones,
    so visible patches do not depend on masked ones.

    Args:
        channels (int): Width C.
        mlp_ratio (float): Width of the MLP relative to C. Defaults to 4.
        kernel_size (int): Side of the depthwise kernel, odd. Defaults to 5.
        drop_path (float): Drop path rate. Defaults to 0.
    """

    def __init__(self,
                 channels: int,
                 mlp_ratio: float = 4,
                 kernel_size: int = 5,
                 drop_path: float = 0.) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm1 = nn.LayerNorm(channels, eps=1e-5)
        self.conv1 = PatchConv(channels, channels)
        self.depthwise = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2,
            groups=channels)
        self.conv2 = PatchConv(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-5)
        self.fc1 = PatchConv(channels, hidden)
        self.fc2 = PatchConv(hidden, channels)
        self.drop_path = DropPath(float(drop_path))

    def forward(self,
                x: Tensor,
                visible: VisibleCells | None = None,
                mask: Tensor | None = None) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Maps, (N, H, W, C), or visible cells, (N, V, s, s, C).
            visible (VisibleCells, optional): Positions of visible cells.
                Defaults to None, whole maps.
            mask (Tensor, optional): Bool, (N, H, W, 1), True = masked, for
                whole maps. Defaults to None, no masking.

        Returns:
            Tensor: Of the input's shape.
        """
        y = self.conv1(self.norm1(x))
        if mask is not None:
            y = y.masked_fill(mask, 0)
        if visible is None:
            y = self._convolve(y)
        else:
            y = self._convolve_visible(y, visible)
        x = x + self.drop_path(self.conv2(y))
        y = self.fc2(gelu(self.fc1(self.norm2(x))))
        return x + self.drop_path(y)

    def _convolve(self, maps: Tensor) -> Tensor:
        # in torch's channels-last memory format, without a copy
        return self.depthwise(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _convolve_visible(self, x: Tensor, visible: VisibleCells) -> Tensor:
        number, height, width = visible.shape
        channels = x.shape[-1]
        maps = x.new_zeros(number * height * width, channels).index_copy(
            0, visible.places, x.reshape(-1, channels))
        maps = self._convolve(maps.view(number, height, width, channels))
        rows = maps.reshape(-1, channels).index_select(0, visible.places)
        return rows.view(x.shape)


class ConvStage(nn.Module):
    """A patch embedding and convolution blocks.

    Args:
        in_channels (int): Number of input channels.
        channels (int): Width C of the stage.
        side (int): Side of a patch in cells of the input.
        mlp_ratio (float): See :class:`ConvBlock`.
        kernel_size (int): See :class:`ConvBlock`.
        drop_paths (Sequence[float]): Drop path rate of each block.
    """

    def __init__(self, in_channels: int, channels: int, side: int,
                 mlp_ratio: float, kernel_size: int,
                 drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(in_channels, channels, side)
        self.blocks = nn.ModuleList(
            ConvBlock(channels, mlp_ratio, kernel_size, rate)
            for rate in drop_paths)

    def forward(self,
                x: Tensor,
                visible: VisibleCells | None = None,
                mask: Tensor | None = None) -> Tensor:
        """Compute the stage; arguments are :meth:`ConvBlock.forward`'s."""
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, visible, mask)
        return x


def find_cells(ids_keep: Tensor, grid: tuple[int, int],
               side: int) -> VisibleCells:
    """Find the cells of visible patches on a stage's maps.

    Args:
        ids_keep (Tensor): The visible patches, (N, V), row-major.
        grid (tuple[int, int]): Height and width of the maps in patches.
        side (int): Side s of a patch in cells.

    Returns:
        VisibleCells: Their positions, in the order (N, V, s, s).
    """
    number = len(ids_keep)
    height, width = grid[0] * side, grid[1] * side
    step = torch.arange(side, device=ids_keep.device)
    image = torch.arange(number, device=ids_keep.device).view(-1, 1, 1, 1)
    patch = ids_keep[:, :, None, None]
    rows = patch // grid[1] * side + step[:, None]
    columns = patch % grid[1] * side + step
    places = (image * height + rows) * width + columns
    return VisibleCells(places.flatten(), (number, height, width))


def enlarge_mask(mask: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Enlarge a mask of patches to a stage's cells.

    Args:
        mask (Tensor): Bool, (N, L), True = masked, row-major.
        grid (tuple[int, int]): Height and width in patches.
        side (int): Side s of a patch in cells.

    Returns:
        Tensor: Bool, (N, H, W, 1).
    """
    mask = mask.view(-1, grid[0], 1, grid[1], 1, 1)
    mask = mask.expand(-1, -1, side, -1, side, -1)
    return mask.flatten(3, 4).flatten(1, 2)
