"""Vision transformers initialised from a CMAE encoder, and SimMIM's."""
from typing import Any

from mmpretrain.models import VisionTransformer, ViTSAM
from mmpretrain.models.selfsup import MaskFeatViT
from mmpretrain.registry import MODELS
from torch import Tensor

from ..utils import (PretrainedMixin, add_extra_tokens, check_arch,
                     set_extra_tokens, set_sincos_positions, simplify_layers,
                     with_mini)


@MODELS.register_module()
class TransferViT(PretrainedMixin, VisionTransformer):
    """mmpretrain's ``VisionTransformer``, initialised from a CMAE encoder.

    It differs from ``VisionTransformer`` in its initialisation only::

        init_cfg=dict(type='Pretrained', checkpoint=..., encoder='online')

    loads a pre-training checkpoint, an exported backbone, a fine-tuned model,
    a released CMAE checkpoint or an MAE encoder, completely or not at all, and
    logs its kind, see :func:`cmae_mm.checkpoints.load_encoder_into`. With
    ``checkpoint='random'`` or ``init_cfg=None`` the weights are random.

    Args:
        arch (str | dict): As ``CMAEViT``'s: mmpretrain's names but for
            'small', and 'mini'. Defaults to 'base'.
        num_class_tokens (int): See ``CMAEViT``. Defaults to 1.
        num_registers (int): See ``CMAEViT``. Defaults to 0.
        **kwargs: Other arguments of ``VisionTransformer``. ``img_size`` is
            the side of a square or (height, width).

    Raises:
        ValueError: If ``arch`` is not known, or the number of class tokens or
            registers not allowed.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    arch_zoo = with_mini(VisionTransformer.arch_zoo)

    def __init__(self,
                 arch: str | dict = 'base',
                 num_class_tokens: int = 1,
                 num_registers: int = 0,
                 **kwargs: Any) -> None:
        check_arch(arch, self.arch_zoo)
        set_extra_tokens(self, num_class_tokens, num_registers)
        kwargs.setdefault('with_cls_token', self.num_extra_tokens > 0)
        super().__init__(arch=arch, **kwargs)
        add_extra_tokens(self)
        simplify_layers(self)



@MODELS.register_module()
class TransferViTDet(PretrainedMixin, ViTSAM):
    """mmpretrain's ``ViTSAM``, initialised from a CMAE encoder.

    Attention is within windows except in a few global blocks, with relative
    positions initialised to zero. There is no class token and no final norm,
    and positions are resampled to the image size. ``init_cfg`` is as in
    ``TransferViT``. As in ``ViTSAM``, drop path applies to the MLPs only.

    Args:
        arch (str | dict): As ``ViTSAM``'s, and 'mini'. Defaults to 'base'.
        **kwargs: Other arguments of ``ViTSAM`` but ``out_channels``: features
            keep the encoder's width.

    Raises:
        ValueError: If ``arch`` is not known.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    arch_zoo = with_mini(ViTSAM.arch_zoo, global_attn_indexes=[1, 3])

    def __init__(self, arch: str | dict = 'base', **kwargs: Any) -> None:
        check_arch(arch, self.arch_zoo)
        super().__init__(arch=arch, out_channels=0, **kwargs)
        simplify_layers(self)



@MODELS.register_module()
class SimMIMViT(MaskFeatViT):
    """The encoder of ``CMAEViT`` for mmpretrain's ``SimMIM``.

    SimMIM (arXiv 2111.09886) replaces masked patches by a learnt token and
    encodes all patches. mmpretrain's ``MaskFeatViT`` does so, but returns
    tokens, and ``SimMIM`` needs a feature map. Positions are fixed sines and
    cosines, as in ``CMAEViT``.

    Args:
        **kwargs: Arguments of ``MaskFeatViT``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_embed.requires_grad = False

    def init_weights(self) -> None:
        """Initialise like ``MaskFeatViT``, except for the positions."""
        super().init_weights()
        set_sincos_positions(self.pos_embed, self.patch_resolution)

    def forward(self, x: Tensor,
                mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Encode images, masked or whole.

        Args:
            x (Tensor): Images, (N, C, H, W).
            mask (Tensor, optional): 1 where a patch is masked, (N, h,
                w). Defaults to None, whole images.

        Returns:
            tuple[Tensor, ...]: With a mask one feature map, (N, D, h,
            w); otherwise the output of ``VisionTransformer``.
        """
        if mask is None:
            return super().forward(x, None)
        tokens = super().forward(x, mask.flatten(1))[:, 1:]
        return (tokens.transpose(1, 2).unflatten(2, mask.shape[1:]), )
