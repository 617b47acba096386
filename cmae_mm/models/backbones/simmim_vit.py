"""A plain vision transformer for SimMIM, which mmpretrain has for Swin."""
from typing import Any, Optional, Tuple

import torch
from mmpretrain.models.selfsup import MaskFeatViT
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class SimMIMViT(MaskFeatViT):
    """The encoder of ``CMAEViT`` as mmpretrain's ``SimMIM`` needs it.

    SimMIM (arXiv 2111.09886) puts a learnt token in the place of the masked
    patches and encodes all of them. mmpretrain's ``MaskFeatViT`` does so, but
    gives tokens, where ``SimMIM`` takes a feature map; positions are fixed
    sines and cosines here, as those of ``CMAEViT``, so that both encoders are
    the same.

    Args:
        **kwargs: Arguments of ``MaskFeatViT``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_embed.requires_grad = False

    def init_weights(self) -> None:
        """Initialise as ``MaskFeatViT`` does, but for the positions."""
        super().init_weights()
        positions = build_2d_sincos_position_embedding(
            self.patch_resolution, self.embed_dims, cls_token=True)
        with torch.no_grad():
            self.pos_embed.copy_(positions)

    def forward(self, x: Tensor,
                mask: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """Encode images, masked or whole.

        Args:
            x (torch.Tensor): Images, (N, C, H, W).
            mask (torch.Tensor, optional): 1 where a patch is masked, (N, h,
                w). Defaults to None, whole images.

        Returns:
            Tuple[torch.Tensor, ...]: With a mask one feature map, (N, D, h,
            w); otherwise what ``VisionTransformer`` gives.
        """
        if mask is None:
            return super().forward(x, None)
        tokens = super().forward(x, mask.flatten(1))[:, 1:]
        return (tokens.transpose(1, 2).unflatten(2, mask.shape[1:]), )
