"""Reconstruction loss L_r and contrastive loss L_c."""
import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank
from mmengine.model import BaseModule
from mmpretrain.models import MAEPretrainHead
from mmpretrain.registry import MODELS

from ..image_size import Pair
from .utils import check_choice, cut_patches, fill_in

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
            error over the masked patches, each patch's pixels normalised by
            their own mean and variance. Other heads get predictions of all
            patches, which are zero for the visible ones.
        contrastive (dict, optional): Arguments of ``CMAEContrastiveHead``.
            None makes an MAE: reconstruction only. Defaults to None.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If ``reconstruction`` contradicts the sizes, or an argument
            of the contrastive head is out of range.
    """

    def __init__(self,
                 patch_size: int = 16,
                 in_channels: int = 3,
                 reconstruction: dict = dict(),
                 contrastive: dict | None = None,
                 init_cfg: dict | None = None) -> None:
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
             proj_s: torch.Tensor | None = None,
             proj_t: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Compute both losses.

        Args:
            pred_pixel (torch.Tensor): Reconstruction y' of the masked
                patches, row-major, (N, L - V, P*P*C).
            images (torch.Tensor): The online view, (N, C, H, W), normalised.
            mask (torch.Tensor): Bool, (N, L), True = masked.
            proj_s (torch.Tensor, optional): Online projections, (N, E).
                Defaults to None, for MAE.
            proj_t (torch.Tensor, optional): Target projections z_t^p,
                (N, E). Defaults to None, for MAE.

        Returns:
            dict[str, torch.Tensor]: ``loss_rc``, and with a contrastive head
            the losses of :meth:`CMAEContrastiveHead.loss`.
        """
        losses = dict(loss_rc=self.reconstruct(pred_pixel, images, mask))
        if self.contrastive is not None:
            losses.update(self.contrastive.loss(proj_s, proj_t))
        return losses

    def reconstruct(self, pred_pixel: torch.Tensor, images: torch.Tensor,
                    mask: torch.Tensor) -> torch.Tensor:
        """Compute the reconstruction loss L_r.

        Args:
            pred_pixel (torch.Tensor): See :meth:`loss`.
            images (torch.Tensor): See :meth:`loss`.
            mask (torch.Tensor): See :meth:`loss`.

        Returns:
            torch.Tensor: The mean over the images, a scalar.
        """
        if not isinstance(self.reconstruction, CMAEReconstructionHead):
            pred_pixel = self._scatter_predictions(pred_pixel, mask)
        return self.reconstruction.loss(pred_pixel, images, mask)

    @staticmethod
    def _scatter_predictions(pred_pixel: torch.Tensor,
                             mask: torch.Tensor) -> torch.Tensor:
        """Scatter predictions of masked patches to zeros, (N, L, P*P*C)."""
        zeros = pred_pixel.new_zeros(*mask.shape, pred_pixel.shape[-1])
        return zeros.masked_scatter(mask[..., None], pred_pixel)


@MODELS.register_module()
class CMAEReconstructionHead(MAEPretrainHead):
    """mmpretrain's ``MAEPretrainHead`` for predictions of masked patches.

    The loss is the same, since the mask excludes visible patches there.

    Args:
        loss_weight (float): Weight of the loss; 0 trains with the contrastive
            loss only. Defaults to 1.
        **kwargs: Arguments of ``MAEPretrainHead``.

    Raises:
        ValueError: If the weight is negative or not finite.
    """

    def __init__(self, loss_weight: float = 1., **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (loss_weight >= 0 and math.isfinite(loss_weight)):
            raise ValueError('head.reconstruction.loss_weight must be 0 or '
                             f'more, but got {loss_weight}')
        self.loss_weight = loss_weight

    def loss(self, pred: torch.Tensor, images: torch.Tensor,
             mask: torch.Tensor) -> torch.Tensor:
        """Compute L_r, the error over the masked patches.

        Args:
            pred (torch.Tensor): Reconstruction y' of the M masked patches,
                row-major, (N, M, P*P*C).
            images (torch.Tensor): The online view, (N, C, H, W), normalised.
            mask (torch.Tensor): Bool, (N, L), True = masked.

        Returns:
            torch.Tensor: The loss, a scalar.
        """
        ids = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        target = self.construct_masked(images, ids[:, :pred.shape[1]])
        # Equal weights; the loss divides by their sum.
        loss = self.loss_module(
            pred, target, pred.new_ones(pred.shape[:2], dtype=target.dtype))
        return loss if self.loss_weight == 1 else self.loss_weight * loss

    def construct_masked(self, images: torch.Tensor,
                          ids: torch.Tensor) -> torch.Tensor:
        """Compute the targets of some patches.

        Args:
            images (torch.Tensor): Images, (N, C, H, W).
            ids (torch.Tensor): Indices of the patches, (N, M).

        Returns:
            torch.Tensor: Targets as in ``construct_target``, (N, M, P*P*C).
        """
        x = cut_patches(images, self.patch_size, ids)
        if self.norm_pix:
            # torch's var is slow on CPUs.
            x = x - x.mean(dim=-1, keepdim=True)
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            x = x / (norm.square() / (x.shape[-1] - 1) + 1e-6).sqrt()
        return self._channels_last(x)

    def _channels_last(self, patches: torch.Tensor) -> torch.Tensor:
        """Reorder pixels, (N, M, C*P*P) to (N, M, P*P*C)."""
        x = patches.unflatten(-1, (self.in_channels, -1))
        return x.transpose(-1, -2).flatten(-2)

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """Cut images of any height and width, multiples of the patch.

        Args:
            images (torch.Tensor): (N, C, H, W).

        Returns:
            torch.Tensor: Pixels of the patches, (N, L, P*P*C), row-major.
        """
        return self._channels_last(cut_patches(images, self.patch_size))

    def unpatchify(self, patches: torch.Tensor,
                   grid: Pair | None = None) -> torch.Tensor:
        """Join patches to images.

        Args:
            patches (torch.Tensor): Pixels of the patches, (N, L, P*P*C),
                row-major.
            grid (tuple[int, int], optional): Height and width of an image in
                patches. Defaults to a square.

        Returns:
            torch.Tensor: (N, C, H, W).
        """
        side, size = math.isqrt(patches.shape[1]), self.patch_size
        rows, columns = grid or (side, side)
        x = patches.reshape(
            -1, rows, columns, size, size, self.in_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(
            -1, self.in_channels, rows * size, columns * size)


@MODELS.register_module()
class CMAEContrastiveHead(BaseModule):
    r"""Predictor and contrastive loss.

    With :math:`\rho = \cos(y_s^p, z_t^p)`, the InfoNCE style is

    .. math::
        L_c = -\log \frac{e^{\rho^+/\tau}}
            {e^{\rho^+/\tau} + \sum_j e^{\rho_j^-/\tau}}

    where the negatives are the target projections of all other images on all
    GPUs. Gradient accumulation adds no negatives; ``CMAE.micro_batch`` does.
    The BYOL style only pulls positives, :math:`2 - 2\rho^+`. The loss is
    computed in one direction, in float32 also under autocast.

    Args:
        predictor (dict): Config of a registered neck with the projection as
            input. ``CMAE`` fills it in: E-1536-E for projections of width E,
            with BatchNorm in the middle.
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
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        check_choice('loss_style', loss_style, LOSS_STYLES)
        if temperature <= 0:
            raise ValueError(
                f'temperature must be above 0, but got {temperature}')
        if not loss_weight >= 0:
            raise ValueError(
                f'loss_weight must be at least 0, but got {loss_weight}')
        self.predictor = MODELS.build(predictor)
        self.loss_style = loss_style
        self.temperature = temperature
        self.loss_weight = loss_weight
        self.scale_by_temperature = scale_by_temperature

    def loss(self, proj_s: torch.Tensor,
             proj_t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the weighted contrastive loss and its statistics.

        Args:
            proj_s (torch.Tensor): Online projections, (N, E).
            proj_t (torch.Tensor): Target projections z_t^p, (N, E), without
                gradient.

        Returns:
            dict[str, torch.Tensor]: ``loss_ct``; ``rho_pos`` and ``rho_neg``,
            the mean cosine of positives and of negatives (both near 1 means
            collapse); and ``acc_ct``, the percentage of images whose positive
            is their nearest target.

        Raises:
            ValueError: If InfoNCE has no negatives.
        """
        with torch.autocast(proj_s.device.type, enabled=False):
            # y_s^p, (N, E)
            pred_s = F.normalize(self.predictor((proj_s.float(), ))[0], dim=1)
            proj_t = F.normalize(proj_t.detach().float(), dim=1)
            # (M, E), M = images on all GPUs
            proj_t = torch.cat(all_gather(proj_t), dim=0)
            rho = pred_s @ proj_t.t()
            labels = torch.arange(
                len(rho), device=rho.device) + len(rho) * get_rank()
            if self.loss_style == 'infonce':
                loss = self._infonce(rho, labels)
            else:
                loss = 2 - 2 * rho.gather(1, labels[:, None]).mean()
        return dict(
            loss_ct=self.loss_weight * loss,
            **self._statistics(rho, labels))

    def _infonce(self, rho: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        if rho.shape[1] < 2:
            raise ValueError(
                'InfoNCE needs negatives, but the batch over all GPUs has one '
                'image; use a batch of 2 or more')
        loss = F.cross_entropy(rho / self.temperature, labels)
        if self.scale_by_temperature:
            loss = 2 * self.temperature * loss
        return loss

    @staticmethod
    @torch.no_grad()
    def _statistics(rho: torch.Tensor,
               labels: torch.Tensor) -> dict[str, torch.Tensor]:
        positive = rho.gather(1, labels[:, None])
        statistics = dict(rho_pos=positive.mean())
        if rho.shape[1] > 1:
            statistics['rho_neg'] = (rho.sum() - positive.sum()) / (
                rho.numel() - len(rho))
            nearest = rho.argmax(dim=1)
            statistics['acc_ct'] = (nearest == labels).float().mean() * 100
        return statistics
