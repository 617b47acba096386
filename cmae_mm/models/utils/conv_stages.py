"""Convolution stages over whole images or over visible patches alone.

Everything works channels-last, on *cells*, the places of a stage's map: maps
of whole images are (N, H, W, C), the cells of visible patches (N, V, s, s, C),
where a patch covers s x s cells. Only the depthwise convolution looks beyond a
patch; for it, visible cells are put on a map of zeros and taken back.
"""
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .patch_embedding import PatchConv, PatchEmbedding


class VisibleCells(NamedTuple):
    """Where the cells of visible patches stand on a stage's maps.

    Args:
        places (Tensor): Places in the flattened maps, (N * V * s * s, ), no
            two of them alike.
        shape (Tuple[int, int, int]): Number, height and width of the maps.
    """

    places: Tensor
    shape: Tuple[int, int, int]


class _Place(torch.autograd.Function):
    """Put rows on zeros, at places that are all different."""

    @staticmethod
    def forward(ctx, rows: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros(size, rows.shape[1]).index_copy_(
            0, places, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Take(torch.autograd.Function):
    """Take the rows at places that are all different.

    The gradient of plain indexing adds up what falls on one place, which is
    slow and has no fixed order.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.new_zeros(ctx.size, grad.shape[1]).index_copy_(
            0, ctx.saved_tensors[0], grad), None


class ConvBlock(nn.Module):
    """A block of masked depthwise convolution and MLP.

    ``x = x + conv2(depthwise(m * conv1(norm1(x))))``, then
    ``x = x + mlp(norm2(x))``: m is 1 on visible patches and 0 on removed ones,
    so that nothing of what is removed reaches what is visible.

    Args:
        channels (int): Width C.
        mlp_ratio (float): Width of the MLP in C. Defaults to 4.
        kernel_size (int): Side of the depthwise kernel, odd. Defaults to 5.
        drop_path (float): Probability with which a path of a sample is
            dropped. Defaults to 0.
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
                visible: Optional[VisibleCells] = None,
                mask: Optional[Tensor] = None) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Maps, (N, H, W, C), or visible cells, (N, V, s, s, C).
            visible (VisibleCells, optional): Where the cells stand, for
                visible cells. Defaults to None: whole maps.
            mask (Tensor, optional): Bool, (N, H, W, 1), True = removed, for
                whole maps. Defaults to None: nothing is removed.

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
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + self.drop_path(y)

    def _convolve(self, maps: Tensor) -> Tensor:
        # a channels-last tensor in torch's sense: nothing is copied
        return self.depthwise(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _convolve_visible(self, x: Tensor, visible: VisibleCells) -> Tensor:
        number, height, width = visible.shape
        channels = x.shape[-1]
        maps = _Place.apply(
            x.reshape(-1, channels), visible.places, number * height * width)
        maps = self._convolve(maps.view(number, height, width, channels))
        rows = _Take.apply(maps.reshape(-1, channels), visible.places)
        return rows.view(x.shape)


class ConvStage(nn.Module):
    """A patch embedding and convolution blocks.

    Args:
        in_channels (int): Number of input channels.
        channels (int): Width C of the stage.
        side (int): Side of a patch in cells of the input.
        mlp_ratio (float): See :class:`ConvBlock`.
        kernel_size (int): See :class:`ConvBlock`.
        drop_paths (Tuple[float, ...]): Drop rate of each block, as many as
            there are blocks.
    """

    def __init__(self, in_channels: int, channels: int, side: int,
                 mlp_ratio: float, kernel_size: int,
                 drop_paths: Tuple[float, ...]) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(in_channels, channels, side)
        self.blocks = nn.ModuleList(
            ConvBlock(channels, mlp_ratio, kernel_size, rate)
            for rate in drop_paths)

    def forward(self,
                x: Tensor,
                visible: Optional[VisibleCells] = None,
                mask: Optional[Tensor] = None) -> Tensor:
        """Compute the stage; arguments are :meth:`ConvBlock.forward`'s."""
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, visible, mask)
        return x


def find_cells(ids_keep: Tensor, grid: Tuple[int, int],
               side: int) -> VisibleCells:
    """Find the cells of visible patches on a stage's maps.

    Args:
        ids_keep (Tensor): The visible patches, (N, V), row-major.
        grid (Tuple[int, int]): Height and width of the maps in patches.
        side (int): Side s of a patch in cells.

    Returns:
        VisibleCells: Their places, in the order (N, V, s, s).
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


def take_patches(images: Tensor, ids_keep: Tensor, side: int) -> Tensor:
    """Take the pixels of visible patches.

    Args:
        images (Tensor): (N, C, H, W).
        ids_keep (Tensor): The visible patches, (N, V), row-major.
        side (int): Side P of a patch in pixels.

    Returns:
        Tensor: (N, V, P, P, C).
    """
    x = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)  # (N, L, P, P, C)
    image = torch.arange(len(x), device=x.device)[:, None]
    return x[image, ids_keep]
