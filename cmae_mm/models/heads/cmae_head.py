"""The two losses: reconstruction and contrast."""
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS

from ..utils import check_choice, fill_in
from .cmae_reconstruction_head import CMAEReconstructionHead

LOSS_STYLES = ('infonce', 'byol')


@MODELS.register_module()
class CMAEHead(BaseModule):
    """Reconstruction and contrastive loss, ``L = L_r + lambda_c * L_c``.

    Args:
        patch_size (int): Side P of a patch in pixels. ``CMAE`` fills it in.
            Defaults to 16.
        in_channels (int): Number C of image channels. ``CMAE`` fills it in.
            Defaults to 3.
        reconstruction (dict): Config of a head with ``loss(pred, images,
            mask)``. Defaults to ``CMAEReconstructionHead``: the mean squared
            error over the removed patches, each patch's pixels normalised by
            their own mean and variance. Other heads get predictions of all
            patches, which are zero for the visible ones.
        contrastive (dict, optional): Arguments of ``CMAEContrastiveHead``.
            None is the one switch that makes an MAE: reconstruction alone.
            Defaults to None.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If ``reconstruction`` contradicts the sizes, or an argument
            of the contrastive head is out of range.
    """

    def __init__(self,
                 patch_size: int = 16,
                 in_channels: int = 3,
                 reconstruction: dict = dict(),
                 contrastive: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        loss = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2')
        self.reconstruction = MODELS.build(fill_in(
            dict(type='mmpretrain.CMAEReconstructionHead', norm_pix=True,
                 loss=loss)
            | dict(reconstruction),
            'head.reconstruction',
            patch_size=patch_size, in_channels=in_channels))
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
            pred_pixel (torch.Tensor): Reconstruction y' of the removed
                patches, row-major, (N, L - V, P*P*C).
            images (torch.Tensor): The online view, (N, C, H, W), normalised.
            mask (torch.Tensor): Bool, (N, L), True = removed.
            proj_s (torch.Tensor, optional): Online projections, (N, E).
                Defaults to None, for MAE.
            proj_t (torch.Tensor, optional): Target projections z_t^p,
                (N, E). Defaults to None, for MAE.

        Returns:
            Dict[str, torch.Tensor]: ``loss_rc``, and with a contrastive head
            what :meth:`CMAEContrastiveHead.loss` returns.
        """
        losses = dict(loss_rc=self.reconstruct(pred_pixel, images, mask))
        if self.contrastive is not None:
            losses.update(self.contrastive.loss(proj_s, proj_t))
        return losses

    def reconstruct(self, pred_pixel: torch.Tensor, images: torch.Tensor,
                    mask: torch.Tensor) -> torch.Tensor:
        """Compute the reconstruction loss L_r alone.

        Args:
            pred_pixel (torch.Tensor): See :meth:`loss`.
            images (torch.Tensor): See :meth:`loss`.
            mask (torch.Tensor): See :meth:`loss`.

        Returns:
            torch.Tensor: The mean over the images, a scalar.
        """
        if not isinstance(self.reconstruction, CMAEReconstructionHead):
            pred_pixel = self._at_their_places(pred_pixel, mask)
        return self.reconstruction.loss(pred_pixel, images, mask)

    @staticmethod
    def _at_their_places(pred_pixel: torch.Tensor,
                         mask: torch.Tensor) -> torch.Tensor:
        """Put predictions of removed patches among zeros, (N, L, P*P*C)."""
        zeros = pred_pixel.new_zeros(*mask.shape, pred_pixel.shape[-1])
        return zeros.masked_scatter(mask[..., None], pred_pixel)


@MODELS.register_module()
class CMAEContrastiveHead(BaseModule):
    r"""Predictor and contrastive loss.

    With :math:`\rho = \cos(y_s^p, z_t^p)`, the InfoNCE style is

    .. math::
        L_c = -\log \frac{e^{\rho^+/\tau}}
            {e^{\rho^+/\tau} + \sum_j e^{\rho_j^-/\tau}}

    where the negatives are the target projections of all other images on all
    GPUs (of one micro-batch: gradient accumulation adds none, for which see
    ``CMAEQueueHead`` and ``CMAE.micro_batch``). The BYOL style only pulls
    positives, :math:`2 - 2\rho^+`. The loss is computed one way only, and
    always in float32, whatever the autocast type is.

    Args:
        predictor (dict): Config of a registered neck that takes the
            projection. ``CMAE`` fills it in: E-1536-E for projections of
            width E, with BatchNorm in the middle.
        loss_style (str): 'infonce' or 'byol'. Defaults to 'infonce'.
        temperature (float): Temperature tau, above 0. Defaults to 0.07.
        loss_weight (float): Weight lambda_c, at least 0. Defaults to 1.
        scale_by_temperature (bool): Whether the InfoNCE loss is multiplied by
            2 tau, as in the released code. Defaults to True.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 predictor: dict,
                 loss_style: str = 'infonce',
                 temperature: float = 0.07,
                 loss_weight: float = 1.,
                 scale_by_temperature: bool = True,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        check_choice('loss_style', loss_style, LOSS_STYLES)
        if temperature <= 0:
            raise ValueError(
                f'temperature must be above 0, but got {temperature}')
        if loss_weight < 0:
            raise ValueError(
                f'loss_weight must be at least 0, but got {loss_weight}')
        self.predictor = MODELS.build(predictor)
        self.loss_style = loss_style
        self.temperature = temperature
        self.loss_weight = loss_weight
        self.scale_by_temperature = scale_by_temperature

    def loss(self, proj_s: torch.Tensor,
             proj_t: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Compute the weighted contrastive loss and what to watch beside it.

        Args:
            proj_s (torch.Tensor): Online projections, (N, E).
            proj_t (torch.Tensor): Target projections z_t^p, (N, E), without
                gradient.

        Returns:
            Dict[str, torch.Tensor]: ``loss_ct``, and, to tell a healthy run
            from a broken one, ``rho_pos`` and ``rho_neg`` (mean cosine of
            positives and negatives; both near 1 means collapse) and
            ``acc_ct`` (share of images, in percent, whose positive is their
            nearest target).

        Raises:
            ValueError: If InfoNCE is left without negatives.
        """
        with torch.autocast(proj_s.device.type, enabled=False):
            # y_s^p, (N, E)
            pred_s = F.normalize(self.predictor((proj_s.float(), ))[0], dim=1)
            proj_t = F.normalize(proj_t.detach().float(), dim=1)
            # (M, E), M = images on all GPUs
            proj_t = torch.cat(all_gather(proj_t), dim=0)
            rho = self.compare(pred_s, proj_t)
            labels = torch.arange(
                len(rho), device=rho.device) + len(rho) * get_rank()
            if self.loss_style == 'infonce':
                loss = self._infonce(rho, labels)
            else:
                loss = 2 - 2 * rho.gather(1, labels[:, None]).mean()
        return dict(
            loss_ct=self.loss_weight * loss,
            **self._watch(rho[:, :len(proj_t)], labels))

    def compare(self, pred_s: torch.Tensor,
                proj_t: torch.Tensor) -> torch.Tensor:
        """Compute cosines; override to contrast with more than the batch.

        Args:
            pred_s (torch.Tensor): Predictions y_s^p, (N, E), normalised.
            proj_t (torch.Tensor): Target projections of all GPUs, (M, E),
                normalised.

        Returns:
            torch.Tensor: Cosines rho, (N, M) or wider: columns from M on are
            further negatives.
        """
        return pred_s @ proj_t.t()

    def _infonce(self, rho: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        if rho.shape[1] < 2:
            raise ValueError(
                'InfoNCE needs negatives, but the batch over all GPUs is one '
                'image; use a batch of 2 or more')
        loss = F.cross_entropy(rho / self.temperature, labels)
        if self.scale_by_temperature:
            loss = 2 * self.temperature * loss
        return loss

    @staticmethod
    @torch.no_grad()
    def _watch(rho: torch.Tensor,
               labels: torch.Tensor) -> Dict[str, torch.Tensor]:
        positive = rho.gather(1, labels[:, None])
        watch = dict(rho_pos=positive.mean())
        if rho.shape[1] > 1:
            watch['rho_neg'] = (rho.sum() - positive.sum()) / (
                rho.numel() - len(rho))
            nearest = rho.argmax(dim=1)
            watch['acc_ct'] = (nearest == labels).float().mean() * 100
        return watch
