"""The reconstruction loss, of nothing but the removed patches."""
import math
from typing import Any

import torch
from mmpretrain.models import MAEPretrainHead
from mmpretrain.registry import MODELS

from ..utils import cut_patches


@MODELS.register_module()
class CMAEReconstructionHead(MAEPretrainHead):
    """mmpretrain's ``MAEPretrainHead`` for predictions of removed patches.

    The value is the same: what a prediction of visible patches and their
    pixels would be compared for is left out by the mask.

    Args:
        loss_weight (float): What the loss is multiplied by; 0 leaves the
            contrast alone. Defaults to 1.
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
        """Compute L_r, the error over the removed patches.

        Args:
            pred (torch.Tensor): Reconstruction y' of the M removed patches,
                row-major, (N, M, P*P*C).
            images (torch.Tensor): The online view, (N, C, H, W), normalised.
            mask (torch.Tensor): Bool, (N, L), True = removed.

        Returns:
            torch.Tensor: The loss, a scalar.
        """
        ids = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        target = self.construct_removed(images, ids[:, :pred.shape[1]])
        # All count alike; the loss divides by their number.
        loss = self.loss_module(
            pred, target, pred.new_ones(pred.shape[:2], dtype=target.dtype))
        return loss if self.loss_weight == 1 else self.loss_weight * loss

    def construct_removed(self, images: torch.Tensor,
                          ids: torch.Tensor) -> torch.Tensor:
        """Make the targets of some patches.

        Args:
            images (torch.Tensor): Images, (N, C, H, W).
            ids (torch.Tensor): Which patches, (N, M).

        Returns:
            torch.Tensor: What ``construct_target`` gives for them,
            (N, M, P*P*C).
        """
        x = cut_patches(images, self.patch_size, ids)
        if self.norm_pix:
            # torch's var is slow on CPUs.
            x = x - x.mean(dim=-1, keepdim=True)
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            x = x / (norm.square() / (x.shape[-1] - 1) + 1e-6).sqrt()
        # (C, P, P) -> (P, P, C)
        x = x.unflatten(-1, (self.in_channels, -1)).transpose(-1, -2)
        return x.flatten(-2)
