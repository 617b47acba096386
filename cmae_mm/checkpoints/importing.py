"""Checkpoints from elsewhere: released CMAE ones, and MAE encoders."""
from typing import List, Tuple

import torch
from torch import nn

from . import names
from .convmae import from_convmae
from .files import StateDict
from .fitting import KeyReport, load_state


def import_cmae(model: nn.Module,
                state: StateDict,
                allow_partial: bool = False) -> KeyReport:
    """Load a released CMAE checkpoint, the whole pre-training state.

    Args:
        model (CMAE): The model, built for the checkpoint's sizes.
        state (StateDict): The state dict under the released code's names.
        allow_partial (bool): See :func:`load_state`.

    Returns:
        KeyReport: What matched and what did not.
    """
    state, optional = from_released(model, state)
    return load_state(model, state, allow_partial, optional)


def from_released(model: nn.Module,
                  state: StateDict) -> Tuple[StateDict, List[str]]:
    """Rename a released CMAE checkpoint for a model.

    Args:
        model (CMAE): The model, built for the checkpoint's sizes.
        state (StateDict): The state dict under the released code's names.

    Returns:
        Tuple[StateDict, List[str]]: The state dict under the model's names,
        and the names that need not be in it.
    """
    state = names.from_cmae(state)
    target = getattr(model, 'target', None)
    encoder = 'target.encoder.'
    optional = []
    if target is not None and not target.with_cls_token:
        # A target that has no class token may come with or without its slot.
        positions = state.get(f'{encoder}pos_embed')
        side = model.backbone.pos_embed.shape[1]
        if positions is not None and positions.shape[1] == side - 1:
            state[f'{encoder}pos_embed'] = torch.cat(
                [torch.zeros_like(positions[:, :1]), positions], dim=1)
        optional.append(f'{encoder}cls_token')
    return state, optional


def import_mae(encoder: nn.Module,
               state: StateDict,
               allow_partial: bool = False) -> KeyReport:
    """Load the encoder of an MAE checkpoint (FAIR's or timm's names).

    Args:
        encoder (CMAEViT): The encoder.
        state (StateDict): State dict of FAIR's pre-training or fine-tuning.
        allow_partial (bool): See :func:`load_state`.

    Returns:
        KeyReport: What matched; MAE's decoder and a classifier's head are not
        looked at.
    """
    return load_state(encoder, names.from_mae(state), allow_partial)


def import_convmae(encoder: nn.Module,
                   state: StateDict,
                   allow_partial: bool = False) -> KeyReport:
    """Load the encoder of a ConvMAE checkpoint.

    Args:
        encoder (CMAEConvViT): The encoder.
        state (StateDict): State dict of ConvMAE's pre-training or fine-tuning.
        allow_partial (bool): See :func:`load_state`.

    Returns:
        KeyReport: What matched; the decoder and a classifier's head are not
        looked at.
    """
    return load_state(encoder, from_convmae(state), allow_partial)
