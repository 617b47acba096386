"""Checkpoints of the encoder alone, for what comes after pre-training."""
from typing import Any, Dict

import torch
from torch import nn

from .version import __version__


def export_encoder(model: nn.Module, path: str, encoder: str = 'online',
                   **meta: Any) -> Dict[str, Any]:
    """Save one encoder as a backbone of mmpretrain's ``VisionTransformer``.

    A config takes it by ``backbone=dict(init_cfg=dict(type='Pretrained',
    checkpoint=path, prefix='backbone.'))``.

    Args:
        model (CMAE): The pre-trained model.
        path (str): The ``.pth`` file to write.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        **meta: What else to note in the file's ``meta``: epoch, config...

    Returns:
        Dict[str, Any]: What was saved, ``state_dict`` and ``meta``.

    Raises:
        ValueError: If the model has no such encoder.
    """
    if encoder == 'online':
        vit = model.backbone
    elif encoder == 'target' and model.target is not None:
        vit = model.target.encoder
    else:
        raise ValueError("encoder must be 'online', or 'target' of a model "
                         f'with a contrastive branch, but got {encoder!r}')
    state = {
        f'backbone.{name}': value.detach().cpu().clone()
        for name, value in vit.state_dict().items()
    }
    checkpoint = dict(
        state_dict=state,
        meta=dict(
            source='cmae_mm',
            version=__version__,
            encoder=encoder,

                  **meta))
    torch.save(checkpoint, path)
    return checkpoint
