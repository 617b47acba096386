"""Pictures of what a pre-training model sees and makes."""
from typing import Any, Dict, Optional, Sequence

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from torch import nn

COLUMNS = ('input', 'masked', 'reconstruction', 'target view')


def to_rgb(images: torch.Tensor,
           preprocessor: BaseDataPreprocessor,
           channels: Optional[Sequence[int]] = None) -> np.ndarray:
    """Undo the normalisation, and make pictures.

    Args:
        images (torch.Tensor): Normalised images, (N, C, H, W), colours as RGB.
        preprocessor (BaseDataPreprocessor): The model's, with ``mean`` and
            ``std``; where values are not from 0 to 255, with ``low`` and
            ``width``, which say what is black and white.
        channels (Sequence[int], optional): The channels, from 0, that are
            shown as red, green and blue, or the one that is shown in grey.
            Defaults to None: three channels as they are, the mean of any
            other number in grey.

    Returns:
        np.ndarray: uint8 images, (N, H, W, 3).

    Raises:
        ValueError: If there are no such channels, or not one or three.
    """
    count = images.shape[1]
    if channels is not None and (len(channels) not in (1, 3) or not all(
            0 <= c < count for c in channels)):
        raise ValueError(
            f'a picture shows one channel or three, each from 0 to {count - 1}'
            f', but got {tuple(channels)}')
    images = images * preprocessor.std + preprocessor.mean
    if not getattr(preprocessor, 'is_byte_range', True):
        images = (images - preprocessor.low) / preprocessor.width * 255
    if channels is not None:
        images = images[:, list(channels)]
    elif count != 3:
        images = images.mean(dim=1, keepdim=True)
    images = images.round().clamp(0, 255).to(torch.uint8)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def reconstruct(model: nn.Module,
                images: torch.Tensor,
                mask: Optional[torch.Tensor] = None
                ) -> Dict[str, torch.Tensor]:
    """Reconstruct removed patches.

    Args:
        model (CMAE): The model.
        images (torch.Tensor): Normalised images, (N, C, H, W).
        mask (torch.Tensor, optional): Bool, (N, L), True = removed. Defaults
            to None, a random one.

    Returns:
        Dict[str, torch.Tensor]: ``mask`` (N, L), and images (N, C, H, W) in
        the input's normalisation: ``masked``, with zeros for removed patches,
        and ``reconstruction``, with predictions there. Where the loss
        normalises patches, each prediction is given the mean and variance of
        its own patch.
    """
    if mask is None:
        mask = model.backbone.generate_mask(len(images), images.device)
    tokens, ids_restore = model.backbone(images, mask)
    pred = model.neck.pixel_decoder(tokens, ids_restore).float()
    head = model.head.reconstruction
    patches = head.patchify(images)
    if head.norm_pix:
        mean = patches.mean(dim=-1, keepdim=True)
        var = patches.var(dim=-1, keepdim=True)
        pred = pred * (var + 1e-6)**.5 + mean
    removed = mask.unsqueeze(-1)
    return dict(
        mask=mask,
        masked=head.unpatchify(patches.masked_fill(removed, 0)),
        reconstruction=head.unpatchify(torch.where(removed, pred, patches)))


@torch.no_grad()
def reconstruction_columns(
        model: nn.Module,
        views: Sequence[torch.Tensor],
        channels: Optional[Sequence[int]] = None) -> Dict[str, np.ndarray]:
    """Make the pictures of :data:`COLUMNS`.

    Args:
        model (CMAE): The model.
        views (Sequence[torch.Tensor]): Normalised online and target view,
            (N, C, H, W) each. The same one twice for MAE.
        channels (Sequence[int], optional): What is shown, see :func:`to_rgb`.
            Defaults to None.

    Returns:
        Dict[str, np.ndarray]: uint8 images (N, H, W, 3) by column.
    """
    training = model.training
    model.eval()
    made = reconstruct(model, views[0])
    model.train(training)
    preprocessor = model.data_preprocessor
    grey = made['masked'].clone()
    # Removed patches are shown in mid grey, also where the mean is not grey.
    head = model.head.reconstruction
    removed = head.unpatchify(
        made['mask'].unsqueeze(-1).float().expand(
            -1, -1, head.patch_size**2 * head.in_channels)) > 0
    mid = (_middle(preprocessor) - preprocessor.mean) / preprocessor.std
    grey = torch.where(removed, mid.expand_as(grey), grey)
    pictures = (views[0], grey, made['reconstruction'], views[-1])
    return {
        name: to_rgb(picture, preprocessor, channels)
        for name, picture in zip(COLUMNS, pictures)
    }


def _middle(preprocessor: BaseDataPreprocessor) -> Any:
    """Give what is shown as mid grey, in the images' units."""
    if getattr(preprocessor, 'is_byte_range', True):
        return 127.5
    return preprocessor.low + preprocessor.width / 2


def save_reconstructions(path: str, columns: Dict[str, np.ndarray],
                         scale: int = 1, per_row: int = 1) -> None:
    """Save the pictures as one PNG, a titled column each.

    Args:
        path (str): Path of the PNG.
        columns (Dict[str, np.ndarray]): Pictures by column, see
            :func:`reconstruction_columns`.
        scale (int): Whole number that pictures are enlarged by. Defaults to 1.
        per_row (int): Number of images side by side. Defaults to 1.
    """
    from PIL import Image, ImageDraw, ImageFont

    first = next(iter(columns.values()))
    count, height, width = first.shape[:3]
    height, width, gap = height * scale, width * scale, 4
    title = 24
    rows = -(-count // per_row)
    block = len(columns) * (width + gap) + 2 * gap
    sheet = Image.new(
        'RGB', (block * per_row, title + rows * (height + gap)), 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for i in range(count):
        row, place = divmod(i, per_row)
        for c, (name, images) in enumerate(columns.items()):
            x = place * block + c * (width + gap)
            if row == 0:
                draw.text((x + 2, 4), name, fill='black', font=font)
            tile = Image.fromarray(images[i]).resize(
                (width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (x, title + row * (height + gap)))
    sheet.save(path)
