"""The hybrid online encoder: two masked convolution stages, then a ViT."""
from typing import Any, List, Optional, Tuple, Union

import torch
from mmpretrain.registry import MODELS

from ..backbones.convvit import ConvViT
from ..utils import check_grid, check_images
from ..utils.patch_embedding import Embedded
from .cmae import BlockMasking, split_by_mask


@MODELS.register_module()
class CMAEConvViT(BlockMasking, ConvViT):
    """Hybrid encoder that encodes the visible patches only.

    The online encoder F_s with a convolutional stem, the paper's best: two
    stages of masked convolution blocks at 1/4 and 1/8 of the image, then
    transformer blocks at 1/16, ``z_v = norm(stage3 + s1 + s2)``, where s1 and
    s2 are the visible patches of both convolution stages, brought to the last
    one's width. There is no class token. Takes the place of ``CMAEViT`` in
    ``CMAE``.

    Masks are drawn on the grid of the last stage's patches. Of visible
    patches alone is anything computed; that gives the same tokens as maps on
    which removed patches are set to zero before each convolution.

    Args:
        arch (str | dict): 'base' (widths 256, 384, 768, depths 2, 2, 11),
            'small' (128, 256, 384; 2, 2, 11) or 'mini' (32, 64, 128; 1, 1, 3);
            or a dict of ``embed_dims``, ``depths`` and ``num_heads``. Defaults
            to 'base'.
        img_size (int): Side of the square input in pixels; a multiple of the
            total stride. Defaults to 224.
        patch_sizes (Sequence[int]): Sides of the stages' patches; their
            product is the total stride P. Defaults to (4, 2, 2).
        mask_ratio (float): Share of the patches that is removed, in (0, 1).
            Defaults to 0.65, as ``CMAEViT``'s; ConvMAE's own is 0.75.
        mask_block (int): Side of a masking block in patches. Must divide the
            grid. Defaults to 2.
        with_fusion (bool): Whether s1 and s2 are added. Defaults to True.
        final_norm (bool): Whether the norm follows. Defaults to True.
        init_cfg (dict | list, optional): Defaults to ConvMAE's
            initialisation. A ``dict(type='Pretrained', ...)`` is loaded as by
            ``TransferConvViT``.
        **kwargs: Other arguments of ``TransferConvViT``.

    Raises:
        ValueError: If ``arch`` is not known, sizes do not fit each other, the
            total stride does not divide the image or the block the grid, or
            the ratio leaves nothing visible or nothing masked.
    """

    def __init__(self,
                 arch: Union[str, dict] = 'base',
                 img_size: int = 224,
                 mask_ratio: float = 0.65,
                 mask_block: int = 2,
                 with_fusion: bool = True,
                 final_norm: bool = True,
                 init_cfg: Optional[Union[dict, List[dict]]] = None,
                 **kwargs: Any) -> None:
        super().__init__(
            arch=arch,
            img_size=img_size,
            with_fusion=with_fusion,
            final_norm=final_norm,
            init_cfg=init_cfg,
            **kwargs)
        check_grid(img_size, self.patch_size, mask_block)
        self.mask_block = mask_block
        self.set_mask_ratio(mask_ratio)
        # Sine-cosine positions are not learnt.
        self.pos_embed.requires_grad = False

    def forward(self,
                x: torch.Tensor,
                mask: Optional[torch.Tensor] = None
                ) -> Tuple[torch.Tensor, ...]:
        """Encode whole images, or their visible patches.

        Args:
            x (torch.Tensor): Images, (N, C, H, W), normalised.
            mask (torch.Tensor, optional): Bool, (N, L), True = removed, see
                :meth:`generate_mask`. Defaults to None, the whole image.

        Returns:
            tuple: Without a mask, one output, (N, L, D) for the default
            ``out_type``. With one,

            - ``z_v`` (N, V, D): visible patches, after the final norm (where
              there is one).
            - ``ids_restore`` (N, L): see :func:`split_by_mask`.
        """
        if mask is None:
            return super().forward(x)
        ids_keep, ids_restore = split_by_mask(mask)
        return self.encode(self.embed(x, ids_keep)), ids_restore

    def embed(self,
              x: torch.Tensor,
              ids_keep: Optional[torch.Tensor] = None) -> Embedded:
        """Run the convolution stages and embed their patches: x_v + p_v.

        Args:
            x (torch.Tensor): Images, (N, C, H, W).
            ids_keep (torch.Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            Embedded: ``tokens`` (N, V, D), and ``fused`` = s1 + s2 of the
            same shape, or None.

        Raises:
            ValueError: If the images are not of the model's size or channels.
        """
        check_images(x, self.in_channels, self.img_size)
        return super().embed(x, ids_keep)
