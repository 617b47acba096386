"""How other libraries name the same parameters.

The names in the middle are those of mmpretrain's ``VisionTransformer``, which
are ``CMAEViT``'s.
"""
import re
from typing import Dict, List, Tuple

import torch

from .files import StateDict

# The released CMAE code, prefix by prefix.
_CMAE = (
    ('target_backbone.', 'target.module.encoder.'),
    ('target_projector.', 'target.module.projector.'),
    ('backbone.', 'backbone.'),
    ('pixel_decoder.', 'neck.pixel_decoder.'),
    ('feature_decoder.', 'neck.feature_decoder.'),
    ('projector.', 'neck.projector.'),
    ('head.predictor.', 'head.contrastive.predictor.'),
)

# timm's VisionTransformer, and FAIR's MAE, which is built on it.
# The order matters: `.ffn.layers.` must be gone when `layers.` is renamed.
_TIMM = (
    ('.ffn.layers.0.0.', '.mlp.fc1.'),
    ('.ffn.layers.1.', '.mlp.fc2.'),
    ('patch_embed.projection.', 'patch_embed.proj.'),
    ('layers.', 'blocks.'),
    ('.ln1.', '.norm1.'),
    ('.ln2.', '.norm2.'),
)

# Hugging Face's ViTModel and ViTMAEModel, under the names of their hub files.
_HF = (
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
_HF_QKV = tuple(f'attention.attention.{n}' for n in ('query', 'key', 'value'))


def from_cmae(state: StateDict) -> StateDict:
    """Rename a released CMAE state dict; names it has not stay as they are."""
    return {_replace_prefix(name, _CMAE): v for name, v in state.items()}


def to_cmae(state: StateDict) -> StateDict:
    """Rename to the released code's names; what it lacks is left out."""
    pairs = [(ours, theirs) for theirs, ours in _CMAE]
    return {
        _replace_prefix(name, pairs): v
        for name, v in state.items()
        if name.startswith(tuple(ours for ours, _ in pairs))
    }


def _replace_prefix(name: str, pairs) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old):]
    return name


def _rename(name: str, final_norm: str, pairs) -> str:
    """Rename an encoder's parameter; the final norm is the bare ``ln1``."""
    name = re.sub(r'^ln1\.', f'{final_norm}.', name)
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def to_timm(state: StateDict) -> StateDict:
    """Rename an encoder to timm's names."""
    renamed = {}
    for name, value in state.items():
        renamed[_rename(name, 'norm', _TIMM)] = value
    return renamed


def from_timm(state: StateDict) -> StateDict:
    """Rename timm's or FAIR MAE's encoder; other names stay as they are."""
    renamed = {}
    for name, value in state.items():
        if not name.startswith('decoder'):
            name = re.sub(r'^norm\.', 'ln1.', name)
            for ours, theirs in _TIMM:
                name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def from_mae(state: StateDict) -> StateDict:
    """Rename the encoder of an MAE checkpoint; all else is left out."""
    other = ('decoder_', 'mask_token', 'head.', 'fc_norm.')
    return from_timm(
        {k: v
         for k, v in state.items() if not k.startswith(other)})


def to_hf(state: StateDict) -> StateDict:
    """Rename to Hugging Face's names: queries, keys and values apart."""
    renamed = {}
    for name, value in state.items():
        name = _rename(name, 'layernorm', _HF)
        if '.attn.qkv.' in name:
            for part, chunk in zip(_HF_QKV, value.chunk(3)):
                renamed[name.replace('attn.qkv', part)] = chunk
        else:
            renamed[name] = value
    return renamed


def to_vit_sam(state: StateDict) -> StateDict:
    """Rename to mmpretrain's ``ViTSAM``, the detection backbone.

    It has no class token and no final norm, and keeps positions as a map,
    (1, H, W, D).
    """
    renamed = {}
    for name, value in state.items():
        if name == 'cls_token' or name.startswith('ln1.'):
            continue
        if name == 'pos_embed' and value.dim() == 3:
            side = round((value.shape[1] - 1)**.5)
            value = value[:, 1:].reshape(1, side, side, -1)
        renamed[name] = value
    return renamed


def resample_pos_embed(pos_embed: torch.Tensor, grid: int,
                       num_prefix: int = 1) -> torch.Tensor:
    """Resample position embeddings to another square grid of patches.

    Bicubic with anti-aliasing, as timm does it. Prefix positions (the class
    token's) are kept. This is the one place where checkpoints are resampled.

    Args:
        pos_embed (torch.Tensor): (1, prefix + L, D), L a square number.
        grid (int): Side of the new grid, in patches.
        num_prefix (int): Positions before the patches'. Defaults to 1.

    Returns:
        torch.Tensor: (1, prefix + grid * grid, D), of the same dtype.
    """
    side = round((pos_embed.shape[1] - num_prefix)**.5)
    if side == grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(
        patches, size=(grid, grid), mode='bicubic', antialias=True)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, patches.to(pos_embed.dtype)], dim=1)


def resample_to(state: StateDict, expected: Dict[str, torch.Tensor]
                ) -> Tuple[StateDict, List[str]]:
    """Resample those position embeddings that fit a model but for their grid.

    Args:
        state (StateDict): Under the model's names.
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
        sides = [round((n - 1)**.5) for n in lengths]
        if any(s * s + 1 != n for s, n in zip(sides, lengths)):
            continue
        state[name] = resample_pos_embed(value, sides[1])
        lines.append(_resampled(name, *sides))
    return state, lines


def _resampled(name: str, old: int, new: int) -> str:
    return f'{name}: {old}x{old} to {new}x{new}'
