"""What stands between the online encoder and the losses."""
from typing import Optional, Tuple

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn

from ..backbones.cmae_vit import check_width
from ..utils import fill_in, mlp_cfg

_XAVIER = [
    dict(type='Xavier', distribution='uniform', layer='Linear'),
    dict(type='Constant', val=1, bias=0, layer='LayerNorm')
]


@MODELS.register_module()
class CMAENeck(BaseModule):
    """Pixel decoder, feature decoder and projector of the online branch.

    Both decoders are mmpretrain's ``MAEPretrainDecoder`` with weights of
    their own: the pixel decoder G_p gives ``y' = G_p(z_v, mask
    tokens)``, the feature decoder G_f completes the features of the removed
    patches, and their mean ``y_s = mean_i G_f(z_v, mask tokens)_i`` is
    projected. Sizes that follow from the encoder are filled in by ``CMAE``
    and need not stand in a config.

    Args:
        embed_dims (int): D, the encoder's width. ``CMAE`` fills it in.
        num_patches (int): L, patches per image. ``CMAE`` fills it in.
        patch_size (int): p, side of a patch in pixels. ``CMAE`` fills it in.
        in_channels (int): Image channels. ``CMAE`` fills it in. Defaults to
            3.
        pixel_decoder (dict): Arguments of ``MAEPretrainDecoder``
            (``decoder_embed_dim``, ``decoder_depth``, ``decoder_num_heads``,
            ``mlp_ratio``). Defaults to MAE's, 8 layers of 512.
        feature_decoder (dict, optional): The same for the feature decoder,
            and ``out_dims``, the width of its output, by default the
            encoder's. Depth 0 leaves its layers out; None leaves the whole
            decoder out, so that the mean of the visible tokens is projected
            (the paper's ablation). Defaults to 2 layers of 512.
        projector (dict, optional): A registered neck, by default 2 layers
            D-1536-256 with BatchNorm in the middle. None switches the
            contrastive branch off. A projector must take the encoder's width,
            since the target's projector is its moving average; where
            ``out_dims`` differs from D, a linear layer that belongs to the
            online branch alone leads from one to the other.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If a decoder's width is no multiple of 4 or of its number
            of heads, or a part's setting contradicts these sizes.
    """

    def __init__(self,
                 embed_dims: int,
                 num_patches: int,
                 patch_size: int,
                 in_channels: int = 3,
                 pixel_decoder: dict = dict(
                     decoder_embed_dim=512,
                     decoder_depth=8,
                     decoder_num_heads=16),
                 feature_decoder: Optional[dict] = dict(
                     decoder_embed_dim=512,
                     decoder_depth=2,
                     decoder_num_heads=16),
                 projector: Optional[dict] = dict(),
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)

        def build_decoder(name: str, cfg: dict, **sizes) -> nn.Module:
            cfg = fill_in(
                cfg,
                f'neck.{name}',
                num_patches=num_patches,
                patch_size=patch_size,
                in_chans=in_channels,
                embed_dim=embed_dims,
                **sizes)
            check_width(
                cfg.get('decoder_embed_dim', 512),
                cfg.get('decoder_num_heads', 16), f'neck.{name}.decoder_')
            return MODELS.build(
                dict(type='mmpretrain.MAEPretrainDecoder', init_cfg=_XAVIER)
                | cfg)

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
                'feature_decoder',
                feature_decoder,
                predict_feature_dim=out_dims)
            if out_dims != embed_dims:
                self.feature_adapter = nn.Linear(
                    out_dims, embed_dims, bias=False)
        self.projector = MODELS.build(
            mlp_cfg(projector, 'neck.projector', in_channels=embed_dims))

    def forward(
        self, tokens: torch.Tensor, ids_restore: torch.Tensor
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Decode pixels, and project the image's feature.

        Args:
            tokens (torch.Tensor): Encoder output, (N, 1 + V, D), class token
                first.
            ids_restore (torch.Tensor): (N, L), see ``split_by_mask``.

        Returns:
            Tuple[torch.Tensor, torch.Tensor | None]:

            - ``pred_pixel`` (N, L, p*p*C): y', the reconstruction.
            - ``proj_s`` (N, P): the online projection, or None without a
              contrastive branch.
        """
        pred_pixel = self.pixel_decoder(tokens, ids_restore)
        if self.projector is None:
            return pred_pixel, None
        feature = self.pool_feature(tokens, ids_restore)
        return pred_pixel, self.projector([feature])[0]

    def pool_feature(self, tokens: torch.Tensor,
                     ids_restore: torch.Tensor) -> torch.Tensor:
        """Make the whole image's feature y_s from the visible tokens.

        Args:
            tokens (torch.Tensor): (N, 1 + V, D), class token first.
            ids_restore (torch.Tensor): (N, L).

        Returns:
            torch.Tensor: y_s, (N, D).
        """
        if self.feature_decoder is None:
            return tokens[:, 1:].mean(dim=1)
        # pred_feature: (N, L, out_dims)
        pred_feature = self.feature_decoder(tokens, ids_restore)
        return self.feature_adapter(pred_feature.mean(dim=1))
