"""Online encoders F_s, which encode visible patches only.

:class:`CMAEViT` is a plain ViT, :class:`CMAEConvViT` has a convolutional stem.
:class:`BlockMasking` draws the masks of both.
"""
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..image_size import ImageSize, Pair, to_pair
from .convvit import ConvViT, Embedded
from .utils import (MAE_INIT, MAEInitMixin, add_extra_tokens, check_arch,
                    check_blocks, check_in_channels, check_width, cut_patches,
                    set_extra_tokens, simplify_layers, with_mini)


class BlockMasking(nn.Module):
    """Random masking of an encoder's patches, in blocks.

    A mixin for encoders with ``patch_resolution``, ``embed`` and ``encode``,
    which call :meth:`set_masking`.

    Attributes:
        patch_resolution (tuple[int, int]): Height and width of the grid in
            patches.
        mask_block (int): Side of a masking block in patches.
        mask_ratio (float): Ratio of masked patches.
    """

    patch_resolution: Pair
    mask_block: int
    mask_ratio: float
    embed: Callable
    encode: Callable

    def set_masking(self, mask_ratio: float, mask_block: int) -> None:
        """Set ratio and blocks of masks.

        Args:
            mask_ratio (float): See :meth:`set_mask_ratio`.
            mask_block (int): Side of a masking block in patches.

        Raises:
            ValueError: If blocks do not divide the grid, or no patch would be
                visible or masked.
        """
        check_blocks(self.img_size, self.patch_size, mask_block)
        self.mask_block = mask_block
        self.set_mask_ratio(mask_ratio)

    def set_mask_ratio(self, mask_ratio: float) -> None:
        """Set the ratio of masked patches.

        Args:
            mask_ratio (float): In (0, 1).

        Raises:
            ValueError: If no patch would be visible or masked.
        """
        num_blocks = math.prod(self._block_grid)
        # With 1e-6, a ratio of 0.9 keeps 10 of 100, not 9.
        num_keep = int(num_blocks * (1 - mask_ratio) + 1e-6)
        if not 0 < mask_ratio < 1 or not 0 < num_keep < num_blocks:
            raise ValueError(
                f'mask_ratio={mask_ratio} keeps {num_keep} of {num_blocks} '
                f'masking units ({self.mask_block}x{self.mask_block} patches '
                'each); at least one must be visible and at least one masked')
        self.mask_ratio = mask_ratio
        self._num_blocks_kept = num_keep

    @property
    def _block_grid(self) -> Pair:
        """Height and width of the grid in blocks."""
        rows, columns = self.patch_resolution
        return rows // self.mask_block, columns // self.mask_block

    def generate_mask(self, num_images: int,
                      device: str | torch.device) -> Tensor:
        """Draw a mask; override to mask differently.

        Blocks of ``mask_block x mask_block`` patches are kept at random,
        ``int(blocks * (1 - mask_ratio))`` of them in every image.

        Args:
            num_images (int): Number N of images.
            device (str | torch.device): Device of the mask.

        Returns:
            Tensor: Bool, (N, L), row-major over the patch grid,
            True = masked, the same number of visible patches in every row.
        """
        rows, columns = self._block_grid
        noise = torch.rand(num_images, rows * columns, device=device)
        keep = noise.argsort(dim=1)[:, :self._num_blocks_kept]
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask.scatter_(1, keep, False)
        # from blocks to patches, (N, L)
        block = self.mask_block
        mask = mask.view(num_images, rows, 1, columns, 1).expand(
            -1, -1, block, -1, block).reshape(num_images, -1)
        return cache_num_visible(mask, self._num_blocks_kept * block**2)

    def forward(self,
                x: Tensor,
                mask: Tensor | None = None
                ) -> tuple[Tensor, ...]:
        """Encode whole images, or their visible patches.

        Args:
            x (Tensor): Images, (N, C, H, W), normalised.
            mask (Tensor, optional): Bool, (N, L), True = masked, see
                :meth:`generate_mask`. Defaults to None, the whole image.

        Returns:
            tuple: Without a mask, the outputs of ``VisionTransformer`` for its
            ``out_type`` (one for a hybrid encoder). With a mask,

            - ``z_v`` (N, K + V, D): extra tokens and visible patches, after
              the final norm (where there is one).
            - ``ids_restore`` (N, L): see :func:`split_by_mask`.
        """
        if mask is None:
            return super().forward(x)
        ids_keep, ids_restore = split_by_mask(mask)
        return self.encode(self.embed(x, ids_keep)), ids_restore


def cache_num_visible(mask: Tensor, num_visible: int) -> Tensor:
    """Store the number V of visible patches of each row with a mask.

    :func:`count_visible` then avoids a synchronisation with the GPU. The note
    is valid until the mask is changed.
    """
    if not mask.is_inference():  # inference tensors have no version
        mask.num_visible_cache = (num_visible, mask._version)
    return mask


def count_visible(mask: Tensor) -> int:
    """Count the visible patches V of a row, and check the mask.

    Args:
        mask (Tensor): Bool, (N, L), True = masked.

    Returns:
        int: V, the same in every row.

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If rows differ, or all or no patches are masked.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise TypeError(
            'the mask must be a bool tensor of shape (N, L), True = masked, '
            f'but got {mask.dtype} of shape {tuple(mask.shape)}')
    noted, version = getattr(mask, 'num_visible_cache', (0, None))
    if version is not None and version == mask._version:
        return noted
    least, most = torch.stack((~mask).sum(dim=1).aminmax()).tolist()
    if least != most:
        raise ValueError(
            'every row of the mask must keep the same number of patches, '
            f'but the rows keep {least} to {most}')
    if not 0 < least < mask.shape[1]:
        raise ValueError(
            f'the mask keeps {least} of {mask.shape[1]} patches; at least one '
            'must be visible and at least one masked')
    return least


def split_by_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a mask to the token orders of encoder and decoders.

    Args:
        mask (Tensor): Bool, (N, L), True = masked. Every row must keep
            the same number V of visible tokens.

    Returns:
        tuple[Tensor, Tensor]:

        - ``ids_keep`` (N, V): the visible patches, in row-major order.
        - ``ids_restore`` (N, L): position of each patch in the sequence
          "visible tokens, then mask tokens".

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If rows differ in their number of visible tokens, or no
            patch is visible or masked.
    """
    num_visible = count_visible(mask)
    ids_shuffle = mask.to(torch.uint8).argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :num_visible], ids_restore


def check_images(images: Tensor, channels: int,
                 size: tuple[int, int]) -> None:
    """Check the channels and the size of images, (N, C, H, W).

    Raises:
        ValueError: If they are not those of the encoder.
    """
    if images.shape[1:] != (channels, *size):
        raise ValueError(
            f'the encoder is built for images of {channels} channels and '
            f'{size[0]}x{size[1]} pixels, but got {tuple(images.shape)}; set '
            'backbone.in_channels and backbone.img_size to those of the '
            'views, or change the views')


@MODELS.register_module()
class CMAEViT(BlockMasking, MAEInitMixin, VisionTransformer):
    """Vision transformer that encodes visible patches only.

    This is the online encoder F_s: patch embedding, fixed 2-D sine-cosine
    positions, then the transformer over a class token and the visible
    patches, ``z_v = F_s(x_v + p_v)``. Without a mask it is mmpretrain's
    ``VisionTransformer``, with the same parameter names.

    Args:
        arch (str | dict): As mmpretrain's ``VisionTransformer``, and 'mini',
            128 wide with 4 layers. The ViT-S of the literature is
            'deit-small'. Defaults to 'base'.
        img_size (int | Sequence[int]): Side of a square input in pixels, or
            (height, width); ``patch_size`` must divide it. Defaults to 224.
        patch_size (int): Side P of a patch in pixels. Defaults to 16.
        mask_ratio (float): Ratio of masked patches, in (0, 1).
            Defaults to 0.65, the released code's.
        mask_block (int): Side of a masking block in patches: 1 masks single
            patches (the paper's text), 2 blocks of 2x2 (the released code).
            Must divide height and width of the patch grid. Defaults to 2.
        out_type (str): Output of ``forward`` without a mask, see
            ``VisionTransformer``. Defaults to 'raw', all tokens, class token
            first.
        num_class_tokens (int): Number of class tokens, from 0 to 16; their
            mean is the feature of ``pool='cls'``. Defaults to 1.
        num_registers (int): Number of register tokens (arXiv 2309.16588),
            from 0 to 16. They follow the class tokens, also in ``cls_token``,
            (1, K, D). Defaults to 0.
        init_cfg (dict | list, optional): Defaults to MAE's initialisation:
            Xavier-uniform linear layers, LayerNorm at one. A
            ``dict(type='Pretrained', ...)`` is loaded as by ``TransferViT``.
        **kwargs: Other arguments of ``VisionTransformer`` except
            ``with_cls_token``, which ``num_class_tokens`` replaces.

    Raises:
        ValueError: If ``arch`` is not known, the number of channels is not
            from 1 to 64, the patch does not divide the image, the block does
            not divide the grid, no patch would be visible or masked, the width
            is not a multiple of 4 and of the number of heads, or the number of
            extra tokens is out of range.
    """

    arch_zoo = with_mini(VisionTransformer.arch_zoo)
    init_cfg: Any
    final_norm: bool

    def __init__(self,
                 arch: str | dict = 'base',
                 img_size: ImageSize = 224,
                 patch_size: int = 16,
                 mask_ratio: float = 0.65,
                 mask_block: int = 2,
                 out_type: str = 'raw',
                 num_class_tokens: int = 1,
                 num_registers: int = 0,
                 init_cfg: dict | list[dict] | None = None,
                 **kwargs: Any) -> None:
        check_arch(arch, self.arch_zoo)
        check_in_channels(kwargs.get('in_channels', 3))
        check_blocks(img_size, patch_size, mask_block)
        set_extra_tokens(self, num_class_tokens, num_registers)
        super().__init__(
            arch=arch,
            img_size=to_pair(img_size),
            patch_size=patch_size,
            out_type=out_type,
            with_cls_token=self.num_extra_tokens > 0,
            init_cfg=MAE_INIT if init_cfg is None else init_cfg,
            **kwargs)
        add_extra_tokens(self)
        check_width(self.embed_dims, self.arch_settings['num_heads'],
                    'backbone.arch.')
        simplify_layers(self)
        self.patch_size = patch_size
        self.in_channels = self.patch_embed.projection.in_channels
        self.num_patches = math.prod(self.patch_resolution)
        self.set_masking(mask_ratio, mask_block)
        # Sine-cosine positions are not learnt.
        self.pos_embed.requires_grad = False

    def embed(self,
              x: Tensor,
              ids_keep: Tensor | None = None) -> Tensor:
        """Embed patches and add positions: x_v + p_v.

        Args:
            x (Tensor): Images, (N, C, H, W).
            ids_keep (Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            Tensor: Embedded tokens, (N, K + V, D), class tokens first, then
            the registers.

        Raises:
            ValueError: If the images are not of the model's size or channels.
        """
        check_images(x, self.in_channels, self.img_size)
        # x_v, (N, V, D): the convolution of visible patches only
        x = cut_patches(x, self.patch_size, ids_keep)
        convolution = self.patch_embed.projection
        x = F.linear(x, convolution.weight.flatten(1), convolution.bias)
        if self.patch_embed.norm is not None:
            x = self.patch_embed.norm(x)
        # p_v; the first positions are those of the extra tokens
        positions = self.pos_embed[:, self.num_extra_tokens:]
        if ids_keep is not None:
            positions = positions[0][ids_keep]
        if self.cls_token is None:
            return x + positions
        cls_token = self.cls_token + self.pos_embed[:, :self.num_extra_tokens]
        return torch.cat(
            [cls_token.expand(x.shape[0], -1, -1), x + positions], dim=1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the transformer over embedded tokens, (N, T, D) to (N, T, D)."""
        x = self.pre_norm(self.drop_after_pos(tokens))
        for layer in self.layers:
            x = layer(x)
        if self.final_norm:
            x = self.ln1(x)
        return x

    def remove_final_norm(self) -> None:
        """Remove the final norm."""
        if self.final_norm:
            self.final_norm = False
            del self.ln1


@MODELS.register_module()
class CMAEConvViT(BlockMasking, ConvViT):
    """Hybrid encoder that encodes visible patches only.

    The online encoder F_s with a convolutional stem, the paper's best: two
    stages of masked convolution blocks at 1/4 and 1/8 of the image, then
    transformer blocks at 1/16, ``z_v = norm(stage3 + s1 + s2)``, where s1 and
    s2 are the visible patches of both convolution stages, projected to the
    last one's width. There is no class token.

    Masks are drawn on the grid of the last stage's patches. Only visible
    patches are computed; their tokens equal those of whole maps on which
    masked patches are set to zero before each convolution.

    Args:
        arch (str | dict): 'base' (widths 256, 384, 768, depths 2, 2, 11),
            'small' (128, 256, 384; 2, 2, 11) or 'mini' (32, 64, 128; 1, 1, 3);
            or a dict of ``embed_dims``, ``depths`` and ``num_heads``. Defaults
            to 'base'.
        img_size (int | Sequence[int]): Side of a square input in pixels, or
            (height, width), multiples of the total stride. Defaults to 224.
        patch_sizes (Sequence[int]): Sides of the stages' patches; their
            product is the total stride P. Defaults to (4, 2, 2).
        mask_ratio (float): Ratio of masked patches, in (0, 1).
            Defaults to 0.65, as ``CMAEViT``'s; ConvMAE's own is 0.75.
        mask_block (int): See ``CMAEViT``. Defaults to 2.
        with_fusion (bool): Whether s1 and s2 are added. Defaults to True.
        final_norm (bool): Whether there is a final norm. Defaults to True.
        init_cfg (dict | list, optional): Defaults to ConvMAE's
            initialisation. A ``dict(type='Pretrained', ...)`` is loaded as by
            ``TransferConvViT``.
        **kwargs: Other arguments of ``TransferConvViT``.

    Raises:
        ValueError: If ``arch`` is not known, sizes do not fit each other, the
            total stride does not divide the image or the block the grid, or no
            patch would be visible or masked.
    """

    def __init__(self,
                 arch: str | dict = 'base',
                 img_size: ImageSize = 224,
                 mask_ratio: float = 0.65,
                 mask_block: int = 2,
                 with_fusion: bool = True,
                 final_norm: bool = True,
                 init_cfg: dict | list[dict] | None = None,
                 **kwargs: Any) -> None:
        super().__init__(
            arch=arch,
            img_size=img_size,
            with_fusion=with_fusion,
            final_norm=final_norm,
            init_cfg=init_cfg,
            **kwargs)
        self.set_masking(mask_ratio, mask_block)
        # Sine-cosine positions are not learnt.
        self.pos_embed.requires_grad = False

    def embed(self,
              x: Tensor,
              ids_keep: Tensor | None = None) -> Embedded:
        """Run the convolution stages and embed their patches: x_v + p_v.

        Args:
            x (Tensor): Images, (N, C, H, W).
            ids_keep (Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            Embedded: ``tokens`` (N, V, D), and ``fused`` = s1 + s2 of the
            same shape, or None.

        Raises:
            ValueError: If the images are not of the model's size or channels.
        """
        check_images(x, self.in_channels, self.img_size)
        return super().embed(x, ids_keep)
