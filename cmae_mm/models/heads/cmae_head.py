"""The two losses of the method."""
from typing import Dict, Optional

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS

from ..utils import fill_in


@MODELS.register_module()
class CMAEHead(BaseModule):
    """Reconstruction and contrastive loss, ``L = L_r + lambda_c * L_c``.

    Args:
        patch_size (int): p, side of a patch in pixels. ``CMAE`` fills it in.
            Defaults to 16.
        in_channels (int): C, image channels. ``CMAE`` fills it in. Defaults
            to 3.
        reconstruction (dict): A head with ``loss(pred, images, mask)``; by
            default mmpretrain's ``MAEPretrainHead``: the mean squared error
            over the removed patches, each patch's pixels normalised by their
            own mean and variance.
        contrastive (dict, optional): ``CMAEContrastiveHead``'s arguments.
            None leaves reconstruction alone, that is MAE.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If ``reconstruction`` contradicts the sizes.
    """

    def __init__(self,
                 patch_size: int = 16,
                 in_channels: int = 3,
                 reconstruction: dict = dict(),
                 contrastive: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        self.reconstruction = MODELS.build(
            dict(
                type='mmpretrain.MAEPretrainHead',
                norm_pix=True,
                loss=dict(
                    type='mmpretrain.PixelReconstructionLoss',
                    criterion='L2')) | fill_in(
                        reconstruction,
                        'head.reconstruction',
                        patch_size=patch_size,
                        in_channels=in_channels))
        self.contrastive = None
        if contrastive is not None:
            self.contrastive = MODELS.build(
                dict(type='mmpretrain.CMAEContrastiveHead')
                | dict(contrastive))

    def loss(self,
             pred_pixel: torch.Tensor,
             images: torch.Tensor,
             mask: torch.Tensor,
             proj_s: Optional[torch.Tensor] = None,
             proj_t: Optional[torch.Tensor] = None) -> Dict[str, torch.Tensor]:
        """Compute both losses.

        Args:
            pred_pixel (torch.Tensor): y', (N, L, p*p*C).
            images (torch.Tensor): The online view, (N, C, H, W), normalised.
            mask (torch.Tensor): Bool, (N, L), True = removed.
            proj_s (torch.Tensor, optional): Online projections, (N, P).
            proj_t (torch.Tensor, optional): Target projections, (N, P).

        Returns:
            Dict[str, torch.Tensor]: ``loss_rc``, and with a contrastive head
            what :meth:`CMAEContrastiveHead.loss` returns.
        """
        losses = dict(
            loss_rc=self.reconstruction.loss(pred_pixel, images, mask))
        if self.contrastive is not None:
            losses.update(self.contrastive.loss(proj_s, proj_t))
        return losses
