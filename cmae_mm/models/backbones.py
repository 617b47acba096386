"""Vision transformers and hybrid encoders for transfer, and SimMIM's."""
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import ModuleList
from mmpretrain.models import VisionTransformer, ViTSAM
from mmpretrain.models.backbones.vit_sam import (TransformerEncoderLayer,
                                                 window_partition,
                                                 window_unpartition)
from mmpretrain.models.selfsup import MaskFeatViT
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from torch import Tensor

from .convvit import ConvViT
from .utils import (PretrainedMixin, add_extra_tokens, check_arch,
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


class WindowBlock(TransformerEncoderLayer):
    """``ViTSAM``'s block with drop path on the attention, too.

    Attention is within windows, or global if ``window_size`` is 0, with
    decomposed relative positions, which are initialised to zero and resampled
    to other map sizes. mmpretrain applies drop path to the MLP only; ViTDet
    (arXiv 2203.16527) to both, per image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Maps of tokens, (N, H, W, D), of any height and width.

        Returns:
            Tensor: Of the same shape.
        """
        y = self.ln1(x)
        if self.window_size > 0:
            y, padded = window_partition(y, self.window_size)
            y = self.attn(y)
            y = window_unpartition(y, self.window_size, padded, x.shape[1:3])
        else:
            y = self.attn(y)
        x = x + self.ffn.dropout_layer(y)
        return self.ffn(self.ln2(x), identity=x)


@MODELS.register_module()
class TransferConvViTDet(ConvViT):
    """Hybrid encoder with a feature pyramid for detection and segmentation.

    Its three stages and a max-pooled third one are four maps, at strides 4, 8,
    16 and 32 for the default patches, for mmdetection's ``FPN`` or
    mmsegmentation's ``UPerHead``. In the last stage, attention is within
    windows except in a few global blocks, with relative positions initialised
    to zero. There are no fusion layers and no final norm. ``init_cfg`` is as
    in ``TransferViT``.

    Images may have any size. They are padded with zeros at the bottom and the
    right to multiples of the total stride, and the maps are cropped to the
    image. A data preprocessor that pads to multiples of the stride
    (``pad_size_divisor`` in mmdetection, ``size_divisor`` in mmsegmentation)
    makes this padding unnecessary.

    Args:
        arch (str | dict): 'base', 'small' or 'mini', or a dict of
            ``embed_dims`` and ``depths``, three each, and ``num_heads`` and
            ``global_attn_indexes``, the global blocks of the last stage, from
            0. Defaults to 'base', whose global blocks are 0, 3, 6 and 10.
        window_size (int): Side of a window in tokens; 0 for global attention
            in all blocks. Defaults to 16.
        out_indices (Sequence[int]): Indices of the returned maps, 0 to 3.
            Defaults to all.
        use_rel_pos (bool): Whether attention has learnt relative positions.
            Defaults to True.
        norm_cfg (dict): The last stage's norms. Defaults to LayerNorm with eps
            1e-6.
        **kwargs: Other arguments of :class:`ConvViT`, but ``out_type``,
            ``final_norm``, ``with_fusion``, ``layer_scale_init_value``,
            ``drop_rate`` and ``qkv_bias``.

    Raises:
        ValueError: If ``arch`` is not known, or sizes do not fit each other.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    arch_zoo: dict[str, dict[str, Any]] = {
        name: dict(
            sizes,
            global_attn_indexes=[0, 2] if name == 'mini' else [0, 3, 6, 10])
        for name, sizes in ConvViT.arch_zoo.items()
    }

    def __init__(self,
                 arch: str | dict = 'base',
                 window_size: int = 16,
                 use_rel_pos: bool = True,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 norm_cfg: dict | None = None,
                 **kwargs: Any) -> None:
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        super().__init__(
            arch=arch,
            norm_cfg=norm_cfg,
            out_type='featmap',
            final_norm=False,
            with_fusion=False,
            layer_scale_init_value=0.,
            **kwargs)
        sizes = self.arch_zoo[arch.lower()] if isinstance(arch, str) else arch
        self.global_attn_indexes = list(sizes['global_attn_indexes'])
        self._check_indices(window_size, out_indices)
        self.out_indices = tuple(out_indices)
        dims = (*self.stage_dims, self.embed_dims)
        # Channels of each map, the input channels of necks and heads.
        self.map_dims = tuple(dims[i] for i in self.out_indices)
        # Replaces VisionTransformer's blocks, with the same names.
        self.layers = ModuleList(
            WindowBlock(
                embed_dims=self.embed_dims,
                num_heads=sizes['num_heads'],
                feedforward_channels=self.arch_settings[
                    'feedforward_channels'],
                drop_path_rate=layer.ffn.dropout_layer.drop_prob,
                norm_cfg=norm_cfg,
                use_rel_pos=use_rel_pos,
                window_size=(
                    0 if i in self.global_attn_indexes else window_size),
                input_size=self.patch_resolution)
            for i, layer in enumerate(self.layers))
        simplify_layers(self)
        if self.frozen_stages > 0:
            self._freeze_stages()

    def _check_indices(self, window_size: int,
                       out_indices: Sequence[int]) -> None:
        wrong = [i for i in self.global_attn_indexes
                 if i not in range(self.num_layers)]
        if wrong:
            raise ValueError(
                f'backbone.arch.global_attn_indexes has {wrong}, but the last '
                f"stage's {self.num_layers} blocks are 0 to "
                f'{self.num_layers - 1}')
        if window_size < 0:
            raise ValueError(
                'backbone.window_size must be the side of a window in tokens, '
                'or 0 for global attention in all blocks, but got '
                f'{window_size}')
        if not out_indices or any(i not in range(4) for i in out_indices):
            raise ValueError(
                'backbone.out_indices must be from 0 to 3 (the three stages '
                f'and the pooled third one), but got {list(out_indices)}')

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of whole images.

        Args:
            x (Tensor): Images, (N, C, H, W), normalised, of any size.

        Returns:
            tuple[Tensor, ...]: (N, D1, H/4, W/4), (N, D2, H/8, W/8),
            (N, D, H/16, W/16) and (N, D, H/32, W/32), each side rounded up,
            for the default patches; of these, those of ``out_indices``.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch_size,
                      0, -height % self.patch_size))
        maps = self.conv_maps(x)
        grid = self.find_grid(x)
        positions = resize_pos_embed(
            self.pos_embed, self.patch_resolution, grid,
            self.interpolate_mode, 0)
        x = self.patch_embed(maps[-1].permute(0, 2, 3, 1))
        x = self.drop_after_pos(x + positions.view(1, *grid, -1))
        for layer in self.layers:
            x = layer(x)
        maps.append(x.permute(0, 3, 1, 2))
        # Side of a cell of each stage in pixels.
        sides = [self.patch_size // side for side in (*self.cell_sides, 1)]
        maps = [m[..., :-(-height // side), :-(-width // side)]
                for m, side in zip(maps, sides)]
        maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return tuple(maps[i] for i in self.out_indices)
