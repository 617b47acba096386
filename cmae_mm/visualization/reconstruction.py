"""Reconstructions of a pre-training model, as pictures."""
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..image_size import split_patches
from .image_grid import to_rgb

# If the loss normalises patches, the decoder predicts only the contrast within
# each patch.
PREDICTED = 'predicted (patches normalised)'
RESTORED = "with each patch's own mean and deviation"


@torch.no_grad()
def reconstruct(model: nn.Module,
                images: torch.Tensor,
                mask: torch.Tensor | None = None
                ) -> dict[str, torch.Tensor]:
    """Reconstruct masked patches.

    Args:
        model (CMAE): The model.
        images (torch.Tensor): Normalised images, (N, C, H, W).
        mask (torch.Tensor, optional): Bool, (N, L), True = masked. Defaults
            to None, a random one.

    Returns:
        dict[str, torch.Tensor]: ``mask`` (N, L), and images (N, C, H, W) in
        the input's normalisation: ``masked``, with zeros for masked patches;
        ``prediction``, the decoder's output for all patches; and
        ``reconstruction``, the input with predictions for masked patches. If
        the loss normalises patches, the mean and variance of each true patch
        are restored in ``reconstruction``.
    """
    if mask is None:
        mask = model.backbone.generate_mask(len(images), images.device)
    tokens, ids_restore = model.backbone(images, mask)
    pred = model.neck.pixel_decoder(tokens, ids_restore).float()
    head = model.head.reconstruction
    patches = head.patchify(images)
    grid = model.backbone.patch_resolution
    # Heads of other projects support squares only.
    unpatchify = partial(
        head.unpatchify, **({} if grid[0] == grid[1] else dict(grid=grid)))
    prediction = unpatchify(pred)
    if head.norm_pix:
        mean = patches.mean(dim=-1, keepdim=True)
        var = patches.var(dim=-1, keepdim=True)
        pred = pred * (var + 1e-6)**.5 + mean
    removed = mask.unsqueeze(-1)
    return dict(
        mask=mask,
        masked=unpatchify(patches.masked_fill(removed, 0)),
        prediction=prediction,
        reconstruction=unpatchify(torch.where(removed, pred, patches)))


def grey_out(images: torch.Tensor, mask: torch.Tensor,
             preprocessor: nn.Module) -> torch.Tensor:
    """Replace masked patches by mid grey.

    Args:
        images (torch.Tensor): Normalised images, (N, 3, H, W).
        mask (torch.Tensor): Bool, (N, L), True = masked.
        preprocessor (nn.Module): With ``mean`` and ``std``.

    Returns:
        torch.Tensor: Images, (N, 3, H, W).
    """
    grid = split_patches(images.shape[2:], mask.shape[1])
    side = images.shape[-1] // grid[1]
    removed = mask.view(-1, 1, *grid).repeat_interleave(
        side, 2).repeat_interleave(side, 3)
    grey = (_middle(preprocessor) - preprocessor.mean) / preprocessor.std
    return torch.where(removed, grey.expand_as(images), images)


def _middle(preprocessor: nn.Module) -> Any:
    """Return the value of mid grey, in the images' units."""
    if getattr(preprocessor, 'is_byte_range', True):
        return 127.5
    return preprocessor.low + preprocessor.width / 2


def prediction_columns(model: nn.Module,
                       images: torch.Tensor,
                       mask: torch.Tensor | None = None,
                       channels: Sequence[int] | None = None
                       ) -> dict[str, np.ndarray]:
    """Draw the prediction of the pixel decoder, raw and restored.

    Args:
        model (CMAE): The model.
        images (torch.Tensor): Normalised images, (N, 3, H, W).
        mask (torch.Tensor, optional): Bool, (N, L), True = masked. Defaults
            to None, a random one.
        channels (Sequence[int], optional): See :func:`to_rgb`. Defaults to
            None.

    Returns:
        dict[str, np.ndarray]: uint8 images (N, H, W, 3) by column: the input,
        its visible patches, the prediction, and the prediction with the mean
        and standard deviation of each true patch. If the loss does not
        normalise patches, the last two are one, the reconstruction.
    """
    training = model.training
    model.eval()
    made = reconstruct(model, images, mask)
    model.train(training)
    preprocessor = model.data_preprocessor
    columns = {
        'input': images,
        'masked': grey_out(images, made['mask'], preprocessor)
    }
    if model.head.reconstruction.norm_pix:
        columns[PREDICTED] = made['prediction']
        columns[RESTORED] = made['reconstruction']
    else:
        columns['reconstruction'] = made['reconstruction']
    return {name: to_rgb(pictures, preprocessor, channels)
            for name, pictures in columns.items()}
