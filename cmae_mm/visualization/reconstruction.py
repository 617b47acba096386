"""Pictures of what a pre-training model sees and makes."""
from typing import Dict, Sequence

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from torch import nn

COLUMNS = ('input', 'masked', 'reconstruction', 'target view')


def to_rgb(images: torch.Tensor, preprocessor: BaseDataPreprocessor,
           ) -> np.ndarray:
    """Undo the normalisation.

    Args:
        images (torch.Tensor): (N, 3, H, W), normalised RGB.
        preprocessor (BaseDataPreprocessor): Has ``mean`` and ``std``.

    Returns:
        np.ndarray: uint8, (N, H, W, 3).
    """
    images = images * preprocessor.std + preprocessor.mean
    images = images.round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def reconstruction_columns(
        model: nn.Module,
        views: Sequence[torch.Tensor]) -> Dict[str, np.ndarray]:
    """Make the pictures of :data:`COLUMNS`.

    Args:
        model (CMAE): The model.
        views (Sequence[torch.Tensor]): Online and target view, (N, 3, H, W)
            each, normalised. The same one twice for MAE.

    Returns:
        Dict[str, np.ndarray]: uint8 images (N, H, W, 3) by column.
    """
    training = model.training
    model.eval()
    made = model.reconstruct(views[0])
    model.train(training)
    preprocessor = model.data_preprocessor
    grey = made['masked'].clone()
    # Removed patches are shown in mid grey, also where the mean is not grey.
    head = model.head.reconstruction
    removed = head.unpatchify(
        made['mask'].unsqueeze(-1).float().expand(
            -1, -1, head.patch_size**2 * head.in_channels)) > 0
    mid = (127.5 - preprocessor.mean) / preprocessor.std
    grey = torch.where(removed, mid.expand_as(grey), grey)
    pictures = (views[0], grey, made['reconstruction'], views[-1])
    return {
        name: to_rgb(picture, preprocessor)
        for name, picture in zip(COLUMNS, pictures)
    }


def save_reconstructions(path: str, columns: Dict[str, np.ndarray],
                         scale: int = 1, per_row: int = 1) -> None:
    """Save the pictures as one PNG, a titled column each.

    Args:
        path (str): The PNG.
        columns (Dict[str, np.ndarray]): See :func:`reconstruction_columns`.
        scale (int): Whole number to enlarge by. Defaults to 1.
        per_row (int): Images side by side in a row. Defaults to 1.
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
