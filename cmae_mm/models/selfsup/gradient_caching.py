"""Gradient caching: losses of a whole batch in micro-batches."""
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def check_gradient(tokens: torch.Tensor, encoder: nn.Module) -> None:
    """Check that training reaches the encoder.

    Args:
        tokens (torch.Tensor): Output of the encoder.
        encoder (nn.Module): The online encoder.

    Raises:
        RuntimeError: If gradients are enabled and do not reach it.
    """
    if not torch.is_grad_enabled() or tokens.requires_grad:
        return
    if any(p.requires_grad for p in encoder.parameters()):
        raise RuntimeError(
            'no gradient reaches the encoder, for example with the reentrant '
            "activation checkpointing of mmengine's Runner; train with "
            'ResumableRunner, or remove activation_checkpointing')


def check_micro_batch(micro_batch: int | None, model: nn.Module) -> None:
    """Check that a model can be trained in micro-batches.

    Args:
        micro_batch (int, optional): Number of images of a micro-batch; None
            for training without.
        model (CMAE): The model.

    Raises:
        ValueError: If the number is below 1, there is no contrastive loss, or
            a part that runs in micro-batches has BatchNorm.
    """
    if micro_batch is None:
        return
    if micro_batch < 1:
        raise ValueError(
            f'micro_batch must be 1 image or more, but got {micro_batch}')
    if model.head.contrastive is None:
        raise ValueError(
            f'micro_batch={micro_batch} is for the contrastive loss, but this '
            'is an MAE; use optim_wrapper.accumulative_counts, which is exact '
            'for it and cheaper')
    parts = dict(backbone=model.backbone)
    parts |= {f'neck.{name}': part for name, part in
              model.neck.named_children() if name != 'projector'}
    for name, part in parts.items():
        if any(isinstance(m, _BatchNorm) for m in part.modules()):
            raise ValueError(
                f'micro_batch={micro_batch} cannot be used: {name} has '
                'BatchNorm, which would use statistics of micro-batches; '
                'remove micro_batch')


def loss_by_micro_batches(model: nn.Module, x_s: torch.Tensor,
                          x_t: torch.Tensor,
                          micro_batch: int) -> dict[str, torch.Tensor]:
    r"""Compute a CMAE's losses, with activations of one micro-batch at a time.

    Gradient caching (Gao et al., arXiv 2101.06983): the features of all
    micro-batches are computed without activations, the contrastive loss is
    that of the whole batch, and each micro-batch is computed again in its
    backward pass. Projector and predictor, and their BatchNorm, see the
    features of the whole batch, so the result is exact. Masks are drawn for
    the whole batch; dropout and drop path are drawn for each micro-batch, the
    same both times.

    Implemented as torch's activation checkpointing with one segment per
    micro-batch. The second forward pass of the online branch takes about a
    quarter more time.

    Args:
        model (CMAE): The model.
        x_s (torch.Tensor): Online views, (N, C, H, W).
        x_t (torch.Tensor): Target views, (N, C, H, W).
        micro_batch (int): Number of images at a time; the last may have fewer.

    Returns:
        dict[str, torch.Tensor]: See ``CMAE.loss``.
    """
    neck, head = model.neck, model.head

    def encode(images: torch.Tensor,
               mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z_v, ids_restore = model.backbone(images, mask)
        check_gradient(z_v, model.backbone)
        pred_pixel = neck.pixel_decoder(z_v, ids_restore, of='masked')
        # L_r, summed over images; y_s
        loss_rc = head.reconstruct(pred_pixel, images, mask)
        return loss_rc * len(images), neck.pool_feature(z_v, ids_restore)

    mask = model.backbone.generate_mask(len(x_s), x_s.device)
    losses, features = _by_parts(
        lambda *part: checkpoint(encode, *part, use_reentrant=False),
        micro_batch, x_s, mask)
    (pooled, ) = _by_parts(
        lambda images: (model.target.pool(images), ), micro_batch, x_t)
    with torch.no_grad():
        proj_t = model.target.projector((torch.cat(pooled), ))[0]
    # (N, D), of all micro-batches
    proj_s = neck.projector((torch.cat(features), ))[0]
    return dict(
        loss_rc=torch.stack(losses).sum() / len(x_s),
        **head.contrastive.loss(proj_s, proj_t))


def _by_parts(function: Callable, size: int,
              *tensors: torch.Tensor) -> tuple:
    """Call a function for each part of some tensors."""
    parts = zip(*(tensor.split(size) for tensor in tensors))
    return tuple(zip(*(function(*part) for part in parts)))
