"""CMAE as one would first put it together from mmpretrain's parts.

What ``benchmark_step.py`` compares with: every class is registered by
mmpretrain or mmengine, everything is computed for every token, the target is
averaged parameter by parameter, and the optimizer has a group for each
parameter. On a GPU it trains in float16 with a loss scaler, as the released
code does; on a CPU in float32.
"""
from typing import Any

import torch
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from cmae_mm.models.utils import mlp_cfg


class ComposedCMAE(BaseModel):
    """MAE of mmpretrain beside a momentum encoder and MoCo v3's head.

    Args:
        model (CMAE): The model whose sizes it takes.
        cfg (dict): That model's config.
        preprocessor (dict): Config of what normalises two finished views.
    """

    def __init__(self, model: nn.Module, cfg: Any, preprocessor: dict) -> None:
        super().__init__(data_preprocessor=preprocessor)
        encoder = model.backbone
        mask = encoder.generate_mask(1, 'cpu')
        sizes = dict(
            arch=dict(encoder.arch_settings),
            img_size=encoder.img_size[0],
            patch_size=encoder.patch_size,
            patch_cfg=dict(in_channels=encoder.in_channels))
        # As many visible patches, whatever the blocks they come in.
        self.backbone = MODELS.build(dict(
            type='MAEViT', mask_ratio=float(mask.float().mean()), **sizes))

        def decoder(settings: dict, **kwargs: Any) -> nn.Module:
            given = {k: v for k, v in settings.items() if k != 'out_dims'}
            return MODELS.build(dict(
                dict(type='MAEPretrainDecoder', num_patches=mask.shape[1],
                     patch_size=encoder.patch_size,
                     in_chans=encoder.in_channels,
                     embed_dim=encoder.embed_dims), **given, **kwargs))

        width, neck = encoder.embed_dims, cfg.neck
        self.pixel_decoder = decoder(neck.get('pixel_decoder', {}))
        self.reconstruction = MODELS.build(dict(
            type='MAEPretrainHead', norm_pix=True,
            patch_size=encoder.patch_size, in_channels=encoder.in_channels,
            loss=dict(type='PixelReconstructionLoss', criterion='L2')))
        self.target = None
        if model.target is None:
            return
        self.feature_decoder = decoder(
            neck.get('feature_decoder') or dict(decoder_depth=0),
            predict_feature_dim=width)
        projector = mlp_cfg(
            neck.get('projector') or {}, 'projector', in_channels=width)
        self.projector = MODELS.build(projector)
        contrastive = model.head.contrastive
        predictor = cfg.head.contrastive.get('predictor') or {}
        self.contrast = MODELS.build(dict(
            type='MoCoV3Head', temperature=contrastive.temperature,
            loss=dict(type='CrossEntropyLoss', loss_weight=(
                2 * contrastive.temperature * contrastive.loss_weight)),
            predictor=mlp_cfg(
                predictor, 'predictor',
                in_channels=projector.get('out_channels', width),
                out_channels=projector.get('out_channels', width))))
        target = MODELS.build(dict(
            type='VisionTransformer', final_norm=False, out_type='raw',
            **sizes))
        self.target = ExponentialMovingAverage(
            nn.Sequential(target, MODELS.build(projector)),
            momentum=1 - model.target.momentum)

    def forward(self, inputs: Any, data_samples: Any = None,
                mode: str = 'loss') -> dict[str, Tensor]:
        """Compute both losses of a batch of two views."""
        views: list[Tensor] = (
            [inputs] if isinstance(inputs, Tensor) else list(inputs))
        z_v, mask, ids_restore = self.backbone(views[0])
        pred = self.pixel_decoder(z_v, ids_restore)
        losses = dict(loss_rc=self.reconstruction.loss(pred, views[0], mask))
        if self.target is not None:
            feature = self.feature_decoder(z_v, ids_restore).mean(dim=1)
            with torch.no_grad():
                encoder, projector = self.target.module
                z_t = encoder(views[-1])[0][:, 1:].mean(dim=1)
                proj_t = projector((z_t, ))[0]
            losses['loss_ct'] = self.contrast.loss(
                self.projector((feature, ))[0], proj_t)
        return losses

    def train_step(self, data: dict, optim_wrapper: Any) -> dict:
        """Train on one batch, then move the target."""
        log_vars = super().train_step(data, optim_wrapper)
        if self.target is not None:
            self.target.update_parameters(
                nn.Sequential(self.backbone, self.projector))
        return log_vars
