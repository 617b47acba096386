"""The contrastive loss between the online and the target branch."""
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS

LOSS_STYLES = ('infonce', 'byol')


@MODELS.register_module()
class CMAEContrastiveHead(BaseModule):
    r"""Predictor and contrastive loss.

    With :math:`\rho = \cos(y_s^p, z_t^p)`, the InfoNCE style is

    .. math::
        L_c = -\log \frac{e^{\rho^+/\tau}}
            {e^{\rho^+/\tau} + \sum_j e^{\rho_j^-/\tau}}

    where the negatives are the target projections of all other images on all
    GPUs (of one micro-batch: gradient accumulation adds none). The BYOL style
    only pulls positives, :math:`2 - 2\rho^+`. The loss is computed one way
    only, and always in float32, whatever the autocast type is.

    Args:
        predictor (dict): A registered neck that takes the projection, by
            default 256-1536-256 with BatchNorm in the middle. ``in_channels``
            and ``out_channels`` are filled in by ``CMAE``.
        loss_style (str): 'infonce' or 'byol'. Defaults to 'infonce'.
        temperature (float): tau, above 0. Defaults to 0.07.
        loss_weight (float): lambda_c, at least 0. Defaults to 1.
        scale_by_temperature (bool): Multiply the InfoNCE loss by 2 tau, as
            the released code does. Defaults to True.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If an argument is outside what is allowed.
    """

    def __init__(self,
                 predictor: dict,
                 loss_style: str = 'infonce',
                 temperature: float = 0.07,
                 loss_weight: float = 1.,
                 scale_by_temperature: bool = True,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        if loss_style not in LOSS_STYLES:
            raise ValueError(f'loss_style must be one of {LOSS_STYLES}, but '
                             f'got {loss_style!r}')
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
            proj_s (torch.Tensor): Online projections, (N, P).
            proj_t (torch.Tensor): Target projections z_t^p, (N, P), without
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
            # y_s^p, (N, P)
            pred_s = F.normalize(self.predictor([proj_s.float()])[0], dim=1)
            proj_t = F.normalize(proj_t.detach().float(), dim=1)
            # (M, P), M = images on all GPUs
            proj_t = torch.cat(all_gather(proj_t), dim=0)
            rho = pred_s @ proj_t.t()
            labels = torch.arange(
                len(rho), device=rho.device) + len(rho) * get_rank()
            if self.loss_style == 'infonce':
                loss = self._infonce(rho, labels)
            else:
                loss = 2 - 2 * rho.gather(1, labels[:, None]).mean()
        return dict(
            loss_ct=self.loss_weight * loss, **self._watch(rho, labels))

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
