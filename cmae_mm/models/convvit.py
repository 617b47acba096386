"""Hybrid encoder: two convolution stages and a vision transformer.

All maps of the stages are channels-last and consist of *cells*. Maps of whole
images are (N, H, W, C), cells of visible patches (N, V, s, s, C), where a
patch covers s x s cells. Only the depthwise convolution reads beyond a patch;
visible cells are scattered to a map of zeros for it and gathered again.
"""
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..image_size import ImageSize, Pair, divide, to_pair
from .utils import (MAEInitMixin, check_arch, check_in_channels, check_width,
                    cut_patches, gelu, simplify_layers)


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


def find_visible_cells(ids_keep: Tensor, grid: tuple[int, int],
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


def upsample_mask(mask: Tensor, grid: tuple[int, int], side: int) -> Tensor:
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


def _check_stages(embed_dims: Sequence[int], depths: Sequence[int],
                  patch_sizes: Sequence[int], kernel_size: int) -> None:
    """Check the sizes of all stages."""
    for name, values in (('arch.embed_dims', embed_dims),
                         ('arch.depths', depths),
                         ('patch_sizes', patch_sizes)):
        if len(values) != 3 or any(
                not isinstance(v, int) or v < 1 for v in values):
            raise ValueError(
                f'backbone.{name} must be three positive ints, two of the '
                'convolution stages and one of the transformer, but got '
                f'{tuple(values)}')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f'backbone.kernel_size must be odd, but got {kernel_size}')


class ConvViT(MAEInitMixin, VisionTransformer):
    """Two stages of masked convolution blocks, then a vision transformer.

    The hybrid encoder of ConvMAE (arXiv 2205.03892). Its third stage is
    mmpretrain's ``VisionTransformer`` without a class token, on the maps of
    the second stage. It encodes whole images or visible patches only.

    Args:
        arch (str | dict): 'base', 'small' or 'mini', or a dict of
            ``embed_dims`` and ``depths``, three each, and ``num_heads``, of
            the last stage. Defaults to 'base'.
        img_size (int | Sequence[int]): Side of a square input in pixels, or
            (height, width), multiples of the total stride. Defaults to 224.
        patch_sizes (Sequence[int]): Sides of the stages' patches, each in
            cells of the stage before; their product, the total stride, is the
            side P of a patch in pixels. Defaults to (4, 2, 2).
        in_channels (int): Number C of image channels. Defaults to 3.
        mlp_ratio (float): Width of MLPs relative to their stage. Defaults to
            4.
        kernel_size (int): Side of depthwise kernels, odd. Defaults to 5.
        drop_path_rate (float): Drop path rate of the last block; the rates
            increase linearly from 0 over all stages. Defaults to 0.
        with_fusion (bool): Whether both convolution stages' outputs are added
            to the last one's, as in pre-training. Defaults to False.
        final_norm (bool): Whether there is a final LayerNorm. Defaults to
            False.
        out_type (str): 'raw', all tokens, (N, L, D); 'featmap', (N, D, H, W);
            'avg_featmap', their mean followed by a separate norm, (N, D).
            Defaults to 'raw'.
        frozen_stages (int): Number of frozen stages; 3 also freezes the norms.
            Defaults to -1, none.
        init_cfg (dict | list, optional): Defaults to the published one, see
            :meth:`init_weights`, with torch's own for the convolutions;
            ``dict(type='Pretrained', ...)`` is loaded as by ``TransferViT``.
        **kwargs: ``drop_rate``, ``qkv_bias``, ``norm_cfg``,
            ``interpolate_mode`` and ``layer_scale_init_value`` of
            ``VisionTransformer``, for the last stage.

    Raises:
        ValueError: If ``arch`` is not known, or sizes do not fit each other.
    """

    arch_zoo: dict[str, dict[str, Any]] = {
        **dict.fromkeys(['b', 'base'], dict(
            embed_dims=[256, 384, 768], depths=[2, 2, 11], num_heads=12)),
        **dict.fromkeys(['s', 'small'], dict(
            embed_dims=[128, 256, 384], depths=[2, 2, 11], num_heads=6)),
        'mini': dict(
            embed_dims=[32, 64, 128], depths=[1, 1, 3], num_heads=4),
    }
    num_extra_tokens = num_class_tokens = 0
    init_cfg: Any
    final_norm: bool
    layers: Any

    def __init__(self,
                 arch: str | dict = 'base',
                 img_size: ImageSize = 224,
                 patch_sizes: Sequence[int] = (4, 2, 2),
                 in_channels: int = 3,
                 mlp_ratio: float = 4,
                 kernel_size: int = 5,
                 drop_path_rate: float = 0.,
                 with_fusion: bool = False,
                 final_norm: bool = False,
                 out_type: str = 'raw',
                 frozen_stages: int = -1,
                 init_cfg: dict | list[dict] | None = None,
                 **kwargs: Any) -> None:
        check_arch(arch, self.arch_zoo)
        check_in_channels(in_channels)
        sizes = self.arch_zoo[arch.lower()] if isinstance(arch, str) else arch
        dims, depths = list(sizes['embed_dims']), list(sizes['depths'])
        _check_stages(dims, depths, patch_sizes, kernel_size)
        stride = math.prod(patch_sizes)
        grid = divide(img_size, stride, 'the product of patch_sizes')
        check_width(dims[-1], sizes['num_heads'], 'backbone.arch.')
        rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        super().__init__(
            arch=dict(
                embed_dims=dims[-1],
                num_layers=depths[-1],
                num_heads=sizes['num_heads'],
                feedforward_channels=int(mlp_ratio * dims[-1])),
            img_size=tuple(side * patch_sizes[-1] for side in grid),
            patch_size=patch_sizes[-1],
            in_channels=dims[-2],
            with_cls_token=False,
            final_norm=final_norm,
            out_type=out_type,
            layer_cfgs=[dict(drop_path_rate=r) for r in rates[-depths[-1]:]],
            init_cfg=init_cfg,
            **kwargs)
        simplify_layers(self)
        self.img_size = to_pair(img_size)
        self.patch_sizes = tuple(patch_sizes)
        self.patch_size = stride
        self.in_channels = in_channels
        self.num_patches = math.prod(grid)
        self.stage_dims = tuple(dims)
        self.conv_stages = nn.ModuleList(
            ConvStage(width, dim, side, mlp_ratio, kernel_size, drop_paths)
            for width, dim, side, drop_paths in zip(
                [in_channels, *dims], dims[:-1], patch_sizes,
                (rates[:depths[0]], rates[depths[0]:-depths[-1]])))
        self.patch_embed = TokenEmbedding(
            dims[-2], dims[-1], patch_sizes[-1], grid)
        self.fusions: nn.ModuleList | None = None
        if with_fusion:
            self.fusions = nn.ModuleList(
                PatchConv(dim, dims[-1], side)
                for dim, side in zip(dims, self.cell_sides))
        self.frozen_stages = frozen_stages
        if frozen_stages > 0:
            self._freeze_stages()

    @property
    def cell_sides(self) -> tuple[int, int]:
        """Side s of a patch in cells of each convolution stage."""
        return self.patch_sizes[1] * self.patch_sizes[2], self.patch_sizes[2]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode whole images.

        Args:
            x (Tensor): Images, (N, C, H, W), normalised; multiples of
                the total stride.

        Returns:
            tuple[Tensor]: One output, see ``out_type``.
        """
        tokens = self.encode(self.embed(x))
        return (self._format_output(tokens, self.find_grid(x)), )

    def embed(self, x: Tensor, ids_keep: Tensor | None = None) -> Embedded:
        """Run the convolution stages and embed their patches as tokens.

        Args:
            x (Tensor): Images, (N, C, H, W).
            ids_keep (Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            Embedded: Tokens with positions, and fused features.
        """
        grid = self.find_grid(x)
        positions = resize_pos_embed(
            self.pos_embed, self.patch_resolution, grid,
            self.interpolate_mode, 0)
        if ids_keep is None:
            x = x.permute(0, 2, 3, 1).contiguous()
        else:
            # (N, V, P, P, C)
            side = self.patch_size
            x = cut_patches(x, side, ids_keep).unflatten(
                2, (-1, side, side)).movedim(2, -1)
            positions = positions.expand(len(x), -1, -1).gather(
                1, ids_keep[..., None].expand(-1, -1, self.embed_dims))
        fused = None
        for i, stage in enumerate(self.conv_stages):
            visible = None if ids_keep is None else find_visible_cells(
                ids_keep, grid, self.cell_sides[i])
            x = stage(x, visible)
            if self.fusions is not None:
                added = self.fusions[i](x).flatten(1, -2)
                fused = added if fused is None else fused + added
        return Embedded(self.patch_embed(x).flatten(1, -2) + positions, fused)

    def encode(self, embedded: Embedded) -> Tensor:
        """Run the transformer blocks, and add the fused features.

        Args:
            embedded (Embedded): Output of :meth:`embed`.

        Returns:
            Tensor: Tokens, (N, V, D), after the final norm, if there is
            one.
        """
        x = self.drop_after_pos(embedded.tokens)
        for layer in self.layers:
            x = layer(x)
        if embedded.fused is not None:
            x = x + embedded.fused
        return self.ln1(x) if self.final_norm else x

    def conv_maps(self,
                  x: Tensor,
                  mask: Tensor | None = None) -> list[Tensor]:
        """Compute the maps of both convolution stages.

        Args:
            x (Tensor): Images, (N, C, H, W).
            mask (Tensor, optional): Bool, (N, L), True = masked. Visible
                cells do not depend on masked ones. Defaults to None.

        Returns:
            list[Tensor]: (N, C, H, W) each, channels-last in memory.
        """
        grid = self.find_grid(x)
        x = x.permute(0, 2, 3, 1).contiguous()
        maps = []
        for stage, side in zip(self.conv_stages, self.cell_sides):
            x = stage(x, mask=None if mask is None else upsample_mask(
                mask, grid, side))
            maps.append(x.permute(0, 3, 1, 2))
        return maps

    def find_grid(self, images: Tensor) -> Pair:
        """Compute the height and width of images in patches.

        Raises:
            ValueError: If the total stride does not divide them.
        """
        return divide(images.shape[2:], self.patch_size,
                      'the product of patch_sizes')

    def remove_final_norm(self) -> None:
        """Remove the final norm."""
        if self.final_norm:
            self.final_norm = False
            del self.ln1

    def remove_fusion(self) -> None:
        """Remove the fusion layers."""
        self.fusions = None

    def get_layer_depth(self, param_name: str,
                        prefix: str = '') -> tuple[int, int]:
        """Return a parameter's depth, and the number of depths.

        As in ConvMAE's fine-tuning, the convolution stages have depth 0.
        """
        if param_name.startswith(f'{prefix}conv_stages.'):
            return 0, self.num_layers + 2
        return super().get_layer_depth(param_name, prefix)

    def _freeze_stages(self) -> None:
        parts: list[nn.Module] = list(self.conv_stages[:self.frozen_stages])
        if self.frozen_stages >= 3:
            parts = [m for name, m in self.named_children()]
            self.pos_embed.requires_grad = False
        for part in parts:
            part.eval().requires_grad_(False)


@MODELS.register_module()
class TransferConvViT(ConvViT):
    """The hybrid encoder, initialised from a CMAE or ConvMAE encoder.

    ``init_cfg`` is as in ``TransferViT``; with ``checkpoint='random'`` or
    ``init_cfg=None`` the weights are those of pre-training at its start.
    There are no fusion layers and no final norm by default, and positions are
    resampled to the image size.

    Args:
        arch (str | dict): As ``CMAEConvViT``'s. Defaults to 'base'.
        out_type (str): See :class:`ConvViT`. Defaults to 'avg_featmap', the
            mean over the tokens followed by a separate norm.
        **kwargs: Other arguments of :class:`ConvViT`.

    Raises:
        ValueError: If ``arch`` is not known, or sizes do not fit each other.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    def __init__(self,
                 arch: str | dict = 'base',
                 out_type: str = 'avg_featmap',
                 **kwargs: Any) -> None:
        super().__init__(arch=arch, out_type=out_type, **kwargs)
