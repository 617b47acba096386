"""ConvMAE's names of the hybrid encoder's parameters, and the decoder's.

The names in the middle are those of ``ConvViT``, which are ``CMAEConvViT``'s
and ``TransferConvViT``'s, and of mmpretrain's ``MAEPretrainDecoder``.
"""

import torch

from .files import StateDict
from .names import BLOCKS, Pairs, replace_prefix

# Ours, and ConvMAE's.
_ENCODER = (
    ('conv_stages.0.patch_embed.projection.', 'patch_embed1.proj.'),
    ('conv_stages.0.patch_embed.', 'patch_embed1.'),
    ('conv_stages.0.blocks.', 'blocks1.'),
    ('conv_stages.1.patch_embed.projection.', 'patch_embed2.proj.'),
    ('conv_stages.1.patch_embed.', 'patch_embed2.'),
    ('conv_stages.1.blocks.', 'blocks2.'),
    ('patch_embed.projection.', 'patch_embed3.proj.'),
    ('patch_embed.norm.', 'patch_embed3.norm.'),
    ('patch_embed.linear.', 'patch_embed4.'),
    ('layers.', 'blocks3.'),
    ('fusions.0.', 'stage1_output_decode.'),
    ('fusions.1.', 'stage2_output_decode.'),
    ('ln1.', 'norm.'),
    ('ln2.', 'fc_norm.'),
)
_CONV_BLOCKS = (
    ('.depthwise.', '.attn.'),
    ('.fc1.', '.mlp.fc1.'),
    ('.fc2.', '.mlp.fc2.'),
)
_DECODER = (('ln1.', 'decoder_norm.'), )
_DECODER_NAMES = ('decoder_', 'mask_token')


def _swap(pairs: Pairs) -> Pairs:
    return [(new, old) for old, new in pairs]


def _replace(name: str, pairs: Pairs) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def to_convmae(state: StateDict) -> StateDict:
    """Rename a hybrid encoder to ConvMAE's names.

    Args:
        state (StateDict): An encoder under our names.

    Returns:
        StateDict: The same under ConvMAE's.
    """
    renamed = {}
    for name, value in state.items():
        inner = _CONV_BLOCKS if name.startswith('conv_stages.') else BLOCKS
        renamed[replace_prefix(_replace(name, inner), _ENCODER)] = value
    return renamed


def from_convmae(state: StateDict) -> StateDict:
    """Rename the encoder of a ConvMAE checkpoint; decoder and head go.

    Args:
        state (StateDict): State dict of ConvMAE's pre-training or fine-tuning.

    Returns:
        StateDict: The encoder under our names; names that it has not stay as
        they are.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith((*_DECODER_NAMES, 'head.')):
            continue
        inner = _CONV_BLOCKS if name.startswith(
            ('blocks1.', 'blocks2.')) else BLOCKS
        name = replace_prefix(_replace(name, _swap(inner)), _swap(_ENCODER))
        renamed[name] = value
    return renamed


def decoder_to_convmae(state: StateDict) -> StateDict:
    """Rename a pixel decoder to ConvMAE's names, which are MAE's.

    Args:
        state (StateDict): A decoder under mmpretrain's names.

    Returns:
        StateDict: The same, without the class token's position.
    """
    renamed = {
        replace_prefix(_replace(k, BLOCKS), _DECODER): v
        for k, v in state.items()
    }
    name = 'decoder_pos_embed'
    return dict(renamed, **{name: renamed[name][:, 1:]})


def decoder_from_convmae(state: StateDict) -> StateDict:
    """Rename the decoder of a ConvMAE checkpoint; all else is left out.

    Args:
        state (StateDict): State dict of ConvMAE's pre-training.

    Returns:
        StateDict: The decoder under mmpretrain's names, with zeros for the
        position of the class token, which it has not.
    """
    renamed = {
        replace_prefix(_replace(k, _swap(BLOCKS)), _swap(_DECODER)): v
        for k, v in state.items() if k.startswith(_DECODER_NAMES)
    }
    name = 'decoder_pos_embed'
    if name in renamed:
        renamed[name] = torch.cat(
            [torch.zeros_like(renamed[name][:, :1]), renamed[name]], dim=1)
    return renamed
