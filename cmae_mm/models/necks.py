"""Decoders and projector of CMAE, and a feature pyramid for detectors."""
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models import MAEPretrainDecoder
from mmpretrain.models.utils import LayerNorm2d
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..image_size import Pair
from .utils import (MAE_INIT, check_width, fill_in, mlp_cfg,
                    set_sincos_positions, simplify_layers)


class CMAEDecoder(MAEPretrainDecoder):
    """mmpretrain's ``MAEPretrainDecoder`` for any extra tokens and grid.

    Args:
        num_extra_tokens (int): Number K of tokens before the patches', 1 for
            a class token, 0 for none. Defaults to 1.
        grid (tuple[int, int], optional): Height and width of an image in
            patches. Defaults to a square of ``num_patches``.
        **kwargs: Arguments of ``MAEPretrainDecoder``.
    """

    def __init__(self, num_extra_tokens: int = 1,
                 grid: Pair | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_extra_tokens = num_extra_tokens
        side = math.isqrt(self.num_patches)
        self.grid = grid or (side, side)
        simplify_layers(self)

    def init_weights(self) -> None:
        """Initialise as MAE does, with sine-cosine positions."""
        super(MAEPretrainDecoder, self).init_weights()
        set_sincos_positions(self.decoder_pos_embed, self.grid)
        nn.init.normal_(self.mask_token, std=.02)

    def forward(self, x: torch.Tensor, ids_restore: torch.Tensor,
                of: str = 'all') -> torch.Tensor:
        """Add mask tokens, and predict pixels or features of patches.

        Args:
            x (torch.Tensor): Visible tokens z_v, (N, K + V, D).
            ids_restore (torch.Tensor): Positions of the patches, (N, L), see
                ``split_by_mask``.
            of (str): Patches to predict: 'all', row-major; 'masked' only,
                row-major; or the 'mean' over all. Defaults to 'all'.

        Returns:
            torch.Tensor: Predictions, (N, L, out), (N, L - V, out), or
            (N, out) for the mean.
        """
        num_visible = x.shape[1] - self.num_extra_tokens
        x = self.fill_in(x, ids_restore)
        for block in self.decoder_blocks:
            x = block(x)
        x = x[:, self.num_extra_tokens:]
        if of == 'masked':
            x = x[:, num_visible:]
        x = self.decoder_norm(x)
        if of == 'mean':
            # A mean commutes with a linear map.
            x = x.mean(dim=1)
        x = self.decoder_pred(x)
        if of == 'all':
            x = x.gather(1, ids_restore[..., None].expand(x.shape))
        return x

    def fill_in(self, x: torch.Tensor,
                ids_restore: torch.Tensor) -> torch.Tensor:
        """Append mask tokens, and add positions.

        Attention does not depend on the order of tokens, so patches are not
        sorted.

        Args:
            x (torch.Tensor): Visible tokens z_v, (N, K + V, D).
            ids_restore (torch.Tensor): Positions of the patches, (N, L).

        Returns:
            torch.Tensor: Class token, visible and masked patches, each
            row-major, (N, K + L, d).
        """
        x = self.decoder_embed(x)
        # The first position belongs to the class token: (K, d) and (N, L, d).
        own, positions = self.decoder_pos_embed[0].tensor_split([1])
        positions = positions[ids_restore.argsort(dim=1)]
        extra, visible = x.tensor_split([self.num_extra_tokens], dim=1)
        at_visible, at_masked = positions.tensor_split(
            [visible.shape[1]], dim=1)
        return torch.cat([
            extra + own, visible + at_visible, self.mask_token + at_masked
        ], dim=1)


@MODELS.register_module()
class CMAENeck(BaseModule):
    """Pixel decoder G_p, feature decoder G_f and projector.

    The pixel decoder reconstructs pixels, ``y' = G_p(z_v, mask tokens)``. The
    feature decoder completes the features of the masked patches, and their
    mean ``y_s = mean_i G_f(z_v, mask tokens)_i`` is projected. ``CMAE`` fills
    in the sizes that follow from the encoder.

    Args:
        embed_dims (int): Width D of the encoder. ``CMAE`` fills it in.
        num_patches (int): Number L of patches of an image. ``CMAE`` fills it
            in.
        patch_size (int): Side P of a patch in pixels. ``CMAE`` fills it in.
        in_channels (int): Number C of image channels. ``CMAE`` fills it in.
            Defaults to 3.
        num_extra_tokens (int): Number K of tokens before the patches', 1 for
            a class token. ``CMAE`` fills it in. Defaults to 1.
        pixel_decoder (dict): Arguments of ``CMAEDecoder``
            (``decoder_embed_dim``, ``decoder_depth``, ``decoder_num_heads``,
            ``mlp_ratio``). Defaults to MAE's, 8 layers of width 512.
        feature_decoder (dict, optional): The same for the feature decoder,
            and ``out_dims``, the width of its output, by default D. With
            depth 0 it has no layers. None removes the decoder: the mean of
            the visible tokens is projected (the paper's ablation). Defaults
            to 2 layers of width 512.
        projector (dict, optional): Config of a registered neck with input
            width D. Defaults to 2 layers, D-1536-256, with BatchNorm between
            them. None, for MAE, removes feature decoder and projector. If
            ``out_dims`` differs from D, a linear layer of the online branch
            maps it to D.
        grid (tuple[int, int], optional): Height and width of an image in
            patches. ``CMAE`` fills it in. Defaults to a square.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If a decoder's width is not a multiple of 4 and of its
            number of heads, or a setting contradicts these sizes.
    """

    def __init__(self,
                 embed_dims: int,
                 num_patches: int,
                 patch_size: int,
                 in_channels: int = 3,
                 num_extra_tokens: int = 1,
                 pixel_decoder: dict = dict(
                     decoder_embed_dim=512,
                     decoder_depth=8,
                     decoder_num_heads=16),
                 feature_decoder: dict | None = dict(
                     decoder_embed_dim=512,
                     decoder_depth=2,
                     decoder_num_heads=16),
                 projector: dict | None = dict(),
                 grid: Pair | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)

        def build_decoder(name: str, cfg: dict, **sizes: Any) -> nn.Module:
            cfg = fill_in(
                dict(type=CMAEDecoder, init_cfg=MAE_INIT) | dict(cfg),
                f'neck.{name}',
                num_patches=num_patches, patch_size=patch_size,
                in_chans=in_channels, embed_dim=embed_dims,
                num_extra_tokens=num_extra_tokens, grid=grid, **sizes)
            check_width(
                cfg.get('decoder_embed_dim', 512),
                cfg.get('decoder_num_heads', 16), f'neck.{name}.decoder_')
            return MODELS.build(cfg)

        self.num_extra_tokens = num_extra_tokens
        self.pixel_decoder = build_decoder('pixel_decoder', pixel_decoder)
        self.feature_decoder = None
        self.feature_adapter = nn.Identity()
        self.projector = None
        if projector is None:
            return
        if feature_decoder is not None:
            feature_decoder = dict(feature_decoder)
            out_dims = feature_decoder.pop('out_dims', None) or embed_dims
            self.feature_decoder = build_decoder(
                'feature_decoder', feature_decoder,
                predict_feature_dim=out_dims)
            if out_dims != embed_dims:
                self.feature_adapter = nn.Linear(
                    out_dims, embed_dims, bias=False)
        self.projector = MODELS.build(
            mlp_cfg(projector, 'neck.projector', in_channels=embed_dims))

    def forward(
        self, tokens: torch.Tensor, ids_restore: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode pixels, and project the image's feature.

        Args:
            tokens (torch.Tensor): Visible tokens z_v, (N, K + V, D).
            ids_restore (torch.Tensor): Positions of the patches, (N, L), see
                ``split_by_mask``.

        Returns:
            tuple[torch.Tensor, torch.Tensor | None]: ``pred_pixel``,
            (N, L - V, P*P*C), the reconstruction y' of the masked patches,
            row-major; and ``proj_s``, (N, E), the online projection, or None
            without a contrastive branch.
        """
        pred_pixel = self.pixel_decoder(tokens, ids_restore, of='masked')
        if self.projector is None:
            return pred_pixel, None
        feature = self.pool_feature(tokens, ids_restore)
        return pred_pixel, self.projector((feature, ))[0]

    def pool_feature(self, tokens: torch.Tensor,
                     ids_restore: torch.Tensor) -> torch.Tensor:
        """Compute the feature y_s of the whole image from visible tokens.

        Args:
            tokens (torch.Tensor): Visible tokens z_v, (N, K + V, D).
            ids_restore (torch.Tensor): Positions of the patches, (N, L).

        Returns:
            torch.Tensor: The feature y_s, (N, D).
        """
        if self.feature_decoder is None:
            return tokens[:, self.num_extra_tokens:].mean(dim=1)
        # (N, out_dims)
        pred_feature = self.feature_decoder(tokens, ids_restore, of='mean')
        return self.feature_adapter(pred_feature)


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Simple feature pyramid (ViTDet, arXiv 2203.16527).

    The last feature map, of stride P, is resized to strides P/4, P/2, P and 2P
    by separate layers; further levels are subsampled from the last.

    Args:
        in_channels (int): Width D of the encoder, a multiple of 4.
        out_channels (int): Number of channels of each level. Defaults to 256.
        num_outs (int): Number of levels, 4 or more. Defaults to 5.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If ``in_channels`` or ``num_outs`` is out of range.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int = 256,
                 num_outs: int = 5,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if in_channels % 4 or num_outs < 4:
            raise ValueError(
                'in_channels must be a multiple of 4 and num_outs 4 or more, '
                f'but got {in_channels} and {num_outs}')
        half, quarter = in_channels // 2, in_channels // 4
        rescale = [
            (nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                LayerNorm2d(half, eps=1e-6), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2)), quarter),
            (nn.ConvTranspose2d(in_channels, half, 2, stride=2), half),
            (nn.Identity(), in_channels),
            (nn.MaxPool2d(2), in_channels),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                layers,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1,
                          bias=False), LayerNorm2d(out_channels, eps=1e-6))
            for layers, channels in rescale)
        self.subsample = nn.MaxPool2d(1, stride=2)
        self.num_outs = num_outs

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs (Sequence[Tensor]): Feature maps, (N, D, H, W); the last one
                is used.

        Returns:
            tuple[Tensor, ...]: The levels, (N, C, 4H, 4W), (N, C, 2H, 2W),
            (N, C, H, W), (N, C, H/2, W/2)..., in float32.
        """
        # Boxes are cast to the dtype of the features; bfloat16 would round
        # them to whole pixels or worse.
        outs = [level(inputs[-1]).float() for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(self.subsample(outs[-1]))
        return tuple(outs)
