"""How other libraries name the same parameters.

The names in the middle are those of mmpretrain's ``VisionTransformer``, which
are ``CMAEViT``'s.
"""
import re
from typing import Sequence, Tuple

from .files import StateDict

# Our names, or the beginnings of names, and those of others.
Pairs = Sequence[Tuple[str, str]]

# The released CMAE code, prefix by prefix.
_CMAE = (
    ('target_backbone.', 'target.encoder.'),
    ('target_projector.', 'target.projector.'),
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
# Of these, what stands inside of transformer blocks.
BLOCKS = tuple(p for p in _TIMM if p[0].startswith('.'))

# What files under timm's names hold beside an encoder.
NO_ENCODER = ('decoder_', 'mask_token', 'head.', 'fc_norm.')


def from_cmae(state: StateDict) -> StateDict:
    """Rename a released CMAE state dict; names it has not stay as they are."""
    return {replace_prefix(name, _CMAE): v for name, v in state.items()}


def to_cmae(state: StateDict) -> StateDict:
    """Rename to the released code's names; what it lacks is left out."""
    pairs = [(ours, theirs) for theirs, ours in _CMAE]
    return {
        replace_prefix(name, pairs): v
        for name, v in state.items()
        if name.startswith(tuple(ours for ours, _ in pairs))
    }


def replace_prefix(name: str, pairs: Pairs) -> str:
    """Replace the first of some prefixes that a name begins with."""
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old):]
    return name


def rename(name: str, final_norm: str, pairs: Pairs) -> str:
    """Rename a parameter of an encoder.

    Args:
        name (str): The parameter's name, without prefix.
        final_norm (str): The other library's name of the final norm, which is
            the bare ``ln1``.
        pairs (Sequence[Tuple[str, str]]): Parts of names, ours and theirs, in
            the order in which they are replaced.

    Returns:
        str: The other library's name.
    """
    name = re.sub(r'^ln1\.', f'{final_norm}.', name)
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def to_timm(state: StateDict) -> StateDict:
    """Rename an encoder to timm's names."""
    renamed = {}
    for name, value in state.items():
        renamed[rename(name, 'norm', _TIMM)] = value
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
    return from_timm(
        {k: v
         for k, v in state.items() if not k.startswith(NO_ENCODER)})


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
