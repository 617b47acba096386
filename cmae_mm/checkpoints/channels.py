"""Patch embeddings for images of another number of channels.

This is the one place where checkpoints are made to fit other channels.
"""
from typing import Dict, List, Tuple

import torch

from .errors import CheckpointError
from .files import StateDict

COLOURS = 3
_ADAPT = 'model.backbone.init_cfg.adapt_channels=True'


def inflate(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Make a patch embedding take another number of channels.

    Each channel gets the mean over the channels that there were, times their
    number over the new one: an image that has the same values, after
    normalisation, in all channels gives the same tokens as before.

    Args:
        weight (torch.Tensor): Weight of a convolution, (D, C, P, P).
        channels (int): The new number of channels.

    Returns:
        torch.Tensor: (D, channels, P, P).
    """
    shared = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return shared.repeat(1, channels, 1, 1)


def inflate_to(state: StateDict,
               expected: Dict[str, torch.Tensor],
               adapt_channels: bool = False) -> Tuple[StateDict, List[str]]:
    """Make an encoder of colour images fit a model of other channels.

    Args:
        state (StateDict): A state dict under the model's names.
        expected (Dict[str, torch.Tensor]): The model's state dict.
        adapt_channels (bool): Whether an encoder of other channels than three
            is taken, too. Defaults to False.

    Returns:
        Tuple[StateDict, List[str]]: The state, and a line for each weight that
        was changed.

    Raises:
        CheckpointError: If the encoder has other channels than three, and
            ``adapt_channels`` is not set.
    """
    state, lines = dict(state), []
    for name, value in state.items():
        wanted = expected.get(name)
        if (wanted is None or 'patch_embed' not in name or value.dim() != 4
                or wanted.dim() != 4):
            continue
        had, has = value.shape[1], wanted.shape[1]
        same = [shape[:1] + shape[2:] for shape in (value.shape, wanted.shape)]
        if had == has or same[0] != same[1]:
            continue
        if had != COLOURS and not adapt_channels:
            raise CheckpointError(
                f'its encoder is for images of {had} channel(s), the model '
                f'for {has}: a weight for each channel cannot be made of those'
                ' of others. To start from their mean all the same, set '
                f'{_ADAPT}')
        state[name] = inflate(value, has)
        lines.append(
            f'{name}: made for {has} channel(s) of the mean over {had}, times '
            f'{had}/{has}, so that an image alike in all channels gives what '
            'it gave')
    return state, lines
