"""The encoder: a vision transformer that can leave patches out."""
from typing import List, Optional, Tuple, Union

import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from torch import nn

from ...checkpoints.encoder import load_encoder_into, pretrained_cfg
from .drop_rates import use_plain_drop_rates

MAE_INIT = [
    dict(type='Xavier', distribution='uniform', layer='Linear'),
    dict(type='Constant', val=1, bias=0, layer='LayerNorm')
]


def split_by_mask(mask: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Turn a mask into the token orders that encoder and decoders use.

    Args:
        mask (torch.Tensor): Bool, (N, L), True = removed. Every row must keep
            the same number V of visible tokens.

    Returns:
        Tuple[torch.Tensor, torch.Tensor]:

        - ``ids_keep`` (N, V): the visible patches, in row-major order.
        - ``ids_restore`` (N, L): where each patch stands in the sequence
          "visible tokens, then mask tokens".

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If rows differ in their number of visible tokens, or if
            nothing is visible or nothing is masked.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise TypeError(
            'the mask must be a bool tensor of shape (N, L), True = removed, '
            f'but got {mask.dtype} of shape {tuple(mask.shape)}')
    num_visible = (~mask).sum(dim=1)
    least, most = torch.stack(num_visible.aminmax()).tolist()
    if least != most:
        raise ValueError(
            'every row of the mask must keep the same number of patches, '
            f'but the rows keep {least} to {most}')
    if not 0 < least < mask.shape[1]:
        raise ValueError(
            f'the mask keeps {least} of {mask.shape[1]} patches; at least one '
            'must be visible and at least one removed')
    ids_shuffle = mask.to(torch.uint8).argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :least], ids_restore


def check_width(width: int, num_heads: int, name: str) -> None:
    """Check that heads and 2-D sine-cosine positions divide a width.

    Args:
        width (int): D, of a transformer.
        num_heads (int): Of its attention.
        name (str): What both settings' names begin with, for errors.

    Raises:
        ValueError: If they do not.
    """
    if width % 4 or num_heads < 1 or width % num_heads:
        raise ValueError(
            f'{name}num_heads={num_heads} must divide the width, {width}, '
            'which must be a multiple of 4 besides, for sine-cosine '
            'positions; change one of the two')


@MODELS.register_module()
class CMAEViT(VisionTransformer):
    """Vision transformer that encodes the visible patches only.

    This is F_s of the paper, the online encoder: patch embedding,
    fixed 2-D sine-cosine positions, then the transformer over a class token
    and the visible patches, ``z_v = F_s(x_v + p_v)``. Without a mask it is
    mmpretrain's ``VisionTransformer``, with the same parameter names.

    Args:
        arch (str | dict): As mmpretrain's ``VisionTransformer``; in addition
            's' / 'small' is the ViT-S of the literature (384 wide, 12 layers,
            mmpretrain's 'deit-small'). Defaults to 'base'.
        img_size (int): Side of the square input in pixels; ``patch_size``
            must divide it. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        mask_ratio (float): Share of the patches that is removed, in (0, 1).
            Defaults to 0.65, the released code's.
        mask_block (int): Side of a masking unit in patches: 1 masks single
            patches (the paper's text), 2 blocks of 2x2 (the released code).
            Must divide the patch grid. Defaults to 2.
        out_type (str): What ``forward`` returns without a mask, see
            ``VisionTransformer``. Defaults to 'raw', all tokens, class token
            first.
        init_cfg (dict | list, optional): Defaults to MAE's initialisation:
            Xavier-uniform linear layers, LayerNorm at one. A
            ``dict(type='Pretrained', ...)`` is loaded as by ``TransferViT``.
        **kwargs: Other arguments of ``VisionTransformer``, but for
            ``with_cls_token``: there always is a class token.

    Raises:
        ValueError: If the image is not square, the patch does not divide it,
            the block does not divide the grid, the ratio leaves nothing
            visible or nothing masked, or the width is no multiple of 4 and
            of the number of heads.
    """

    arch_zoo = {
        **VisionTransformer.arch_zoo,
        **dict.fromkeys(['s', 'small'],
                        VisionTransformer.arch_zoo['deit-small']),
        'mini': dict(
            embed_dims=128,
            num_layers=4,
            num_heads=4,
            feedforward_channels=512),
    }

    def __init__(self,
                 arch: Union[str, dict] = 'base',
                 img_size: int = 224,
                 patch_size: int = 16,
                 mask_ratio: float = 0.65,
                 mask_block: int = 2,
                 out_type: str = 'raw',
                 init_cfg: Optional[Union[dict, List[dict]]] = None,
                 **kwargs) -> None:
        for name, value in (('img_size', img_size), ('patch_size',
                                                     patch_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f'{name} must be a positive int, the side of a square in '
                    f'pixels, but got {value!r}')
        if img_size % patch_size:
            raise ValueError(
                f'patch_size={patch_size} does not divide img_size={img_size}'
                '; choose an image size that is a multiple of the patch size')
        grid = img_size // patch_size
        if mask_block < 1 or grid % mask_block:
            raise ValueError(
                f'mask_block={mask_block} does not divide the {grid}x{grid} '
                f'grid of patches (img_size={img_size}, patch_size='
                f'{patch_size}); use mask_block=1, or an image size that is a '
                f'multiple of {patch_size * max(mask_block, 1)}')
        if init_cfg is None:
            init_cfg = MAE_INIT
        super().__init__(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            out_type=out_type,
            with_cls_token=True,
            init_cfg=init_cfg,
            **kwargs)
        check_width(self.embed_dims, self.arch_settings['num_heads'],
                    'backbone.arch.')
        use_plain_drop_rates(self)
        self.patch_size = patch_size
        self.mask_block = mask_block
        self.grid = grid
        self.num_patches = grid * grid
        self.set_mask_ratio(mask_ratio)
        # Sine-cosine positions are not learnt.
        self.pos_embed.requires_grad = False

    def set_mask_ratio(self, mask_ratio: float) -> None:
        """Choose the share of the patches that is removed.

        Args:
            mask_ratio (float): In (0, 1).

        Raises:
            ValueError: If it leaves nothing visible or nothing masked.
        """
        num_units = (self.grid // self.mask_block)**2
        # 1e-6 so that a ratio of 0.9 keeps 10 of 100 and not 9.
        num_keep = int(num_units * (1 - mask_ratio) + 1e-6)
        if not 0 < mask_ratio < 1 or not 0 < num_keep < num_units:
            raise ValueError(
                f'mask_ratio={mask_ratio} keeps {num_keep} of {num_units} '
                f'masking units ({self.mask_block}x{self.mask_block} patches '
                'each); at least one must stay visible and at least one be '
                'removed')
        self.mask_ratio = mask_ratio
        self._num_units_kept = num_keep

    def init_weights(self) -> None:
        """Initialise as MAE does, or load an encoder, every key or none.

        ``dict(type='Pretrained', checkpoint=..., encoder='online')`` takes
        what ``TransferViT`` takes.

        Raises:
            CheckpointError: If the checkpoint is missing or does not fit.
        """
        pretrained = pretrained_cfg(self.init_cfg)
        if pretrained is not None:
            load_encoder_into(self, **pretrained)
            self._is_init = True
            return
        if isinstance(self.init_cfg, dict) and (
                self.init_cfg['type'] == 'Pretrained'):  # the word 'random'
            self.init_cfg = MAE_INIT
        super().init_weights()
        self.pos_embed.data.copy_(
            build_2d_sincos_position_embedding(
                self.grid, self.embed_dims, cls_token=True))
        weight = self.patch_embed.projection.weight
        nn.init.xavier_uniform_(weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=.02)

    def generate_mask(self, num_images: int,
                      device: Union[str, torch.device]) -> torch.Tensor:
        """Draw which patches are removed; override to mask differently.

        Units of ``mask_block x mask_block`` patches are kept at random,
        ``int(units * (1 - mask_ratio))`` of them in every image.

        Args:
            num_images (int): N, the number of images.
            device (str | torch.device): Where the mask is needed.

        Returns:
            torch.Tensor: Bool, (N, L), row-major over the patch grid,
            True = removed, the same number of visible patches in every row.
        """
        side = self.grid // self.mask_block
        noise = torch.rand(num_images, side * side, device=device)
        keep = noise.argsort(dim=1)[:, :self._num_units_kept]
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask.scatter_(1, keep, False)
        mask = mask.view(num_images, side, side)
        for dim in (1, 2):
            mask = mask.repeat_interleave(self.mask_block, dim=dim)
        return mask.flatten(1)

    def forward(
        self,
        x: torch.Tensor,
        mask: Optional[torch.Tensor] = None
    ) -> Union[Tuple[torch.Tensor, ...], Tuple[torch.Tensor, torch.Tensor]]:
        """Encode whole images, or their visible patches.

        Args:
            x (torch.Tensor): Images, (N, C, H, W), normalised.
            mask (torch.Tensor, optional): Bool, (N, L), True = removed, see
                :meth:`generate_mask`. Defaults to None, the whole image.

        Returns:
            tuple: Without a mask, what ``VisionTransformer`` returns for
            ``out_indices`` and ``out_type``. With one,

            - ``tokens`` (N, 1 + V, D): class token and visible patches, after
              the final norm (where there is one).
            - ``ids_restore`` (N, L): see :func:`split_by_mask`.
        """
        if mask is None:
            return super().forward(x)
        ids_keep, ids_restore = split_by_mask(mask)
        return self.encode(self.embed(x, ids_keep)), ids_restore

    def embed(self,
              x: torch.Tensor,
              ids_keep: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Embed patches and add positions: x_v + p_v.

        Args:
            x (torch.Tensor): Images, (N, C, H, W).
            ids_keep (torch.Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            torch.Tensor: (N, 1 + V, D), class token first.

        Raises:
            ValueError: If the images are not of the model's size or channels.
        """
        channels = self.patch_embed.projection.in_channels
        if x.shape[1:] != (channels, *self.img_size):
            raise ValueError(
                f'the encoder is built for images of {channels} channels and '
                f'{self.img_size[0]}x{self.img_size[1]} pixels, but got '
                f'{tuple(x.shape)}; set backbone.in_channels and '
                'backbone.img_size to what the views are, or the size of the '
                'views to the other')
        # x: (N, L, D) with positions, the class token's left out
        x = self.patch_embed(x)[0]
        x = x + self.pos_embed[:, 1:]
        if ids_keep is not None:
            x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls_token.expand(x.shape[0], -1, -1), x], dim=1)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the transformer over embedded tokens, (N, T, D) to (N, T, D)."""
        x = self.pre_norm(self.drop_after_pos(tokens))
        for layer in self.layers:
            x = layer(x)
        if self.final_norm:
            x = self.ln1(x)
        return x
