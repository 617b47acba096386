"""Position embeddings for another grid of patches.

This is the one place where checkpoints are resampled.
"""
from typing import Dict, List, Tuple

import torch
import torch.nn.functional as F

from .files import StateDict


def resample_pos_embed(pos_embed: torch.Tensor, grid: int,
                       num_prefix: int = 1) -> torch.Tensor:
    """Resample position embeddings to another square grid of patches.

    Bicubic with anti-aliasing, as timm does it. Prefix positions (the class
    token's) are kept. This is the one place where checkpoints are resampled.

    Args:
        pos_embed (torch.Tensor): Position embeddings, (1, prefix + L, D), L a
            square number.
        grid (int): Side of the new grid, in patches.
        num_prefix (int): Number of positions before those of the patches.
            Defaults to 1.

    Returns:
        torch.Tensor: Position embeddings, (1, prefix + grid * grid, D), of
        the same dtype.
    """
    side = round((pos_embed.shape[1] - num_prefix)**.5)
    if side == grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(
        patches, size=(grid, grid), mode='bicubic', antialias=True)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, patches.to(pos_embed.dtype)], dim=1)


def resample_to(state: StateDict, expected: Dict[str, torch.Tensor]
                ) -> Tuple[StateDict, List[str]]:
    """Resample those position embeddings that fit a model but for their grid.

    Args:
        state (StateDict): A state dict under the model's names.
        expected (Dict[str, torch.Tensor]): The model's state dict.

    Returns:
        Tuple[StateDict, List[str]]: The state, and a line for each that was
        resampled.
    """
    state, lines = dict(state), []
    for name, value in state.items():
        wanted = expected.get(name)
        if wanted is None or not name.endswith('pos_embed'):
            continue
        if value.dim() == 4 and wanted.dim() == 4:  # ViTSAM's map
            sides = [value.shape[1], wanted.shape[1]]
            if (sides[0] != sides[1]
                    and value.shape[1] == value.shape[2]
                    and wanted.shape[1] == wanted.shape[2]):
                tokens = resample_pos_embed(value.flatten(1, 2), sides[1], 0)
                state[name] = tokens.view(1, sides[1], sides[1], -1)
                lines.append(_resampled(name, *sides))
            continue
        lengths = [x.shape[1] for x in (value, wanted)]
        if (value.dim() != 3 or lengths[0] == lengths[1]
                or value.shape[2] != wanted.shape[2]):
            continue
        # With a class token's slot or without, both alike.
        for prefix in (1, 0):
            sides = [round((n - prefix)**.5) for n in lengths]
            if all(s * s + prefix == n for s, n in zip(sides, lengths)):
                state[name] = resample_pos_embed(value, sides[1], prefix)
                lines.append(_resampled(name, *sides))
                break
    return state, lines


def _resampled(name: str, old: int, new: int) -> str:
    return f'{name}: {old}x{old} to {new}x{new}'
