"""Contrast with more images than a batch has."""
from typing import Any

import torch
from mmpretrain.registry import MODELS

from .cmae_head import CMAEContrastiveHead


@MODELS.register_module()
class CMAEQueueHead(CMAEContrastiveHead):
    """``CMAEContrastiveHead`` with earlier batches' targets as negatives.

    MoCo's queue (He et al., arXiv 1911.05722): the target projections z_t^p
    of the latest images, of all GPUs, are kept, and InfoNCE contrasts with
    them besides the batch's own. A small batch, or the micro-batches of
    gradient accumulation, thus have as many negatives as a large one. What it
    changes: these targets come from the target encoder of up to
    ``queue_length / batch`` iterations ago, and from BatchNorm over their own
    batches. The queue is empty at first, and there are fewer negatives until
    it is full. ``rho_neg`` and ``acc_ct`` remain those of the batch.

    The queue is a buffer: checkpoints hold it, and a step that is skipped
    leaves it as it was.

    Args:
        predictor (dict): See ``CMAEContrastiveHead``.
        queue_length (int): Number of target projections that are kept; 4 bytes
            times their width each. For the recipe's 4096 positives and
            negatives, 4096 minus the batch over all GPUs. Defaults to 3840.
        **kwargs: Other arguments of ``CMAEContrastiveHead``.

    Raises:
        ValueError: If ``queue_length`` is below 1, or ``loss_style`` is
            'byol', which has no negatives.
    """

    def __init__(self,
                 predictor: dict,
                 queue_length: int = 3840,
                 **kwargs: Any) -> None:
        super().__init__(predictor, **kwargs)
        if queue_length < 1:
            raise ValueError('queue_length must be 1 or more, but got '
                             f'{queue_length}')
        if self.loss_style == 'byol':
            raise ValueError(
                "loss_style='byol' has no negatives, of which CMAEQueueHead "
                "keeps a queue; use type='CMAEContrastiveHead'")
        self.queue_length = queue_length
        self.register_buffer(
            'queue', torch.zeros(queue_length, predictor['out_channels']))
        # Where the next one goes, and how many there are.
        self.register_buffer('queue_place', torch.tensor(0))
        self.register_buffer('queue_filled', torch.tensor(0))

    def compare(self, pred_s: torch.Tensor,
                proj_t: torch.Tensor) -> torch.Tensor:
        """Compute cosines with the batch's targets and with the queue's.

        Args:
            pred_s (torch.Tensor): Predictions y_s^p, (N, E), normalised.
            proj_t (torch.Tensor): Target projections of all GPUs, (M, E),
                normalised.

        Returns:
            torch.Tensor: Cosines, (N, M + Q) for a queue of Q; minus infinity
            for places of the queue that are still empty.
        """
        # A copy, since the backward pass needs what is replaced here.
        queued = pred_s @ self.queue.t().clone()
        empty = torch.arange(
            self.queue_length, device=queued.device) >= self.queue_filled
        rho = torch.cat([
            super().compare(pred_s, proj_t),
            queued.masked_fill(empty, float('-inf'))
        ], dim=1)
        if self.training and torch.is_grad_enabled():
            self._put(proj_t)
        return rho

    @torch.no_grad()
    def _put(self, proj_t: torch.Tensor) -> None:
        """Put targets in the place of the oldest ones."""
        proj_t = proj_t[-self.queue_length:]
        count = len(proj_t)
        places = self.queue_place + torch.arange(count, device=proj_t.device)
        self.queue.index_copy_(0, places % self.queue_length, proj_t)
        self.queue_place.add_(count).remainder_(self.queue_length)
        self.queue_filled.add_(count).clamp_(max=self.queue_length)
