"""Encoders as Hugging Face's ``ViTModel`` and ``ViTMAEModel`` take them."""
import json
from pathlib import Path
from typing import Any, Dict

import torch
from torch import nn

from .errors import CheckpointError
from .files import StateDict, write_checkpoint
from .names import rename

# Export targets: the model's type and class there.
CLASSES = dict(
    hf_vit=('vit', 'ViTModel'), hf_vitmae=('vit_mae', 'ViTMAEModel'))

# Parts of names, ours and those of the files on the hub.
_NAMES = (
    ('.ffn.layers.0.0.', '.intermediate.dense.'),
    ('.ffn.layers.1.', '.output.dense.'),
    ('.attn.proj.', '.attention.output.dense.'),
    ('cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'embeddings.position_embeddings'),
    ('patch_embed.projection.', 'embeddings.patch_embeddings.projection.'),
    ('layers.', 'encoder.layer.'),
    ('.ln1.', '.layernorm_before.'),
    ('.ln2.', '.layernorm_after.'),
)
_QKV = tuple(f'attention.attention.{n}' for n in ('query', 'key', 'value'))


def to_hf(state: StateDict) -> StateDict:
    """Rename an encoder to Hugging Face's names.

    Queries, keys and values are separate there. ``ViTModel`` cannot leave its
    final norm out: for an encoder without one, the norm only normalises, and
    the tokens before it are ``hidden_states[-1]``.

    Args:
        state (StateDict): An encoder under mmpretrain's names.

    Returns:
        StateDict: The same under Hugging Face's names.
    """
    state = dict(state)
    if 'ln1.weight' not in state:
        width = state['pos_embed'].shape[2]
        state['ln1.weight'] = torch.ones(width)
        state['ln1.bias'] = torch.zeros(width)
    renamed = {}
    for name, value in state.items():
        name = rename(name, 'layernorm', _NAMES)
        if '.attn.qkv.' in name:
            for part, chunk in zip(_QKV, value.chunk(3)):
                renamed[name.replace('attn.qkv', part)] = chunk
        else:
            renamed[name] = value
    return renamed


def model_config(vit: nn.Module, to: str, img_size: int) -> Dict[str, Any]:
    """Give the ``config.json`` that belongs to an exported encoder.

    Args:
        vit (CMAEViT): The encoder.
        to (str): One of :data:`CLASSES`.
        img_size (int): Side of the images that it is exported for, in pixels.

    Returns:
        Dict[str, Any]: The content of ``config.json``.
    """
    model_type, architecture = CLASSES[to]
    return dict(
        architectures=[architecture],
        model_type=model_type,
        hidden_size=vit.embed_dims,
        num_hidden_layers=vit.num_layers,
        num_attention_heads=vit.arch_settings['num_heads'],
        intermediate_size=vit.arch_settings['feedforward_channels'],
        hidden_act='gelu',
        layer_norm_eps=1e-6,
        image_size=img_size,
        patch_size=vit.patch_size,
        num_channels=vit.patch_embed.projection.in_channels,
        qkv_bias=True,
        hidden_dropout_prob=0.,
        attention_probs_dropout_prob=0.)


def write_folder(path: str, state: StateDict, config: Dict[str, Any],
                 meta: Dict[str, Any]) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        path (str): The folder; it is made where it is missing.
        state (StateDict): The model's tensors, under Hugging Face's names.
        config (Dict[str, Any]): The content of ``config.json``.
        meta (Dict[str, Any]): What the file says about itself.

    Raises:
        CheckpointError: If the path looks like a file's, or cannot be written.
    """
    folder = Path(path)
    if folder.suffix:
        raise CheckpointError(
            f'for Hugging Face name a folder, not a file like {path}')
    # transformers asks for the framework's name.
    write_checkpoint(
        str(folder / 'model.safetensors'), state, dict(meta, format='pt'))
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
