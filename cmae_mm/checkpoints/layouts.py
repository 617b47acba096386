"""How each library names the parameters of an encoder, and which one did.

Our names are those of mmpretrain's ``VisionTransformer``, which ``CMAEViT``
and ``TransferViT`` share, and of ``ConvViT``. A layout is one table, which
:func:`rename` reads in both directions.
"""
import re
from typing import Any, List, Mapping, NamedTuple, Sequence, Set, Tuple

import torch

from .errors import CheckpointError
from .read import StateDict


class Row(NamedTuple):
    """The beginning of a name, ours and theirs, and parts of what follows."""

    ours: str
    theirs: str
    parts: Mapping[str, str] = {}


Layout = Sequence[Row]

_BLOCK = {
    '.ffn.layers.0.0.': '.mlp.fc1.',
    '.ffn.layers.1.': '.mlp.fc2.',
    '.ln1.': '.norm1.',
    '.ln2.': '.norm2.',
}
_CONV_BLOCK = {
    '.depthwise.': '.attn.',
    '.fc1.': '.mlp.fc1.',
    '.fc2.': '.mlp.fc2.',
}
# timm's VisionTransformer, and FAIR's MAE, which is built on it.
TIMM: Layout = (
    Row('ln1.', 'norm.'),
    Row('patch_embed.projection.', 'patch_embed.proj.'),
    Row('layers.', 'blocks.', _BLOCK),
)
# A classifier on pooled features: timm's with `global_pool='avg'`.
TIMM_CLASSIFIER: Layout = (
    Row('head.fc.', 'head.'),
    Row('backbone.ln2.', 'fc_norm.'),
    *(Row(f'backbone.{row.ours}', row.theirs, row.parts) for row in TIMM),
    Row('backbone.', ''),
)
HUGGING_FACE: Layout = (
    Row('ln1.', 'layernorm.'),
    Row('cls_token', 'embeddings.cls_token'),
    Row('pos_embed', 'embeddings.position_embeddings'),
    Row('patch_embed.', 'embeddings.patch_embeddings.'),
    Row('layers.', 'encoder.layer.', {
        '.attn.proj.': '.attention.output.dense.',
        '.ffn.layers.0.0.': '.intermediate.dense.',
        '.ffn.layers.1.': '.output.dense.',
        '.ln1.': '.layernorm_before.',
        '.ln2.': '.layernorm_after.',
    }),
)
CONVMAE: Layout = (
    Row('conv_stages.0.patch_embed.projection.', 'patch_embed1.proj.'),
    Row('conv_stages.0.patch_embed.', 'patch_embed1.'),
    Row('conv_stages.0.blocks.', 'blocks1.', _CONV_BLOCK),
    Row('conv_stages.1.patch_embed.projection.', 'patch_embed2.proj.'),
    Row('conv_stages.1.patch_embed.', 'patch_embed2.'),
    Row('conv_stages.1.blocks.', 'blocks2.', _CONV_BLOCK),
    Row('patch_embed.projection.', 'patch_embed3.proj.'),
    Row('patch_embed.norm.', 'patch_embed3.norm.'),
    Row('patch_embed.linear.', 'patch_embed4.'),
    Row('layers.', 'blocks3.', _BLOCK),
    Row('fusions.0.', 'stage1_output_decode.'),
    Row('fusions.1.', 'stage2_output_decode.'),
    Row('ln1.', 'norm.'),
)
# mmpretrain's MAEPretrainDecoder; ConvMAE's names are MAE's.
DECODER: Layout = (
    Row('ln1.', 'decoder_norm.'),
    Row('decoder_blocks.', 'decoder_blocks.', _BLOCK),
)
# The released CMAE code: the whole model.
CMAE: Layout = (
    Row('target.encoder.', 'target_backbone.'),
    Row('target.projector.', 'target_projector.'),
    Row('backbone.', 'backbone.'),
    Row('neck.pixel_decoder.', 'pixel_decoder.'),
    Row('neck.feature_decoder.', 'feature_decoder.'),
    Row('neck.projector.', 'projector.'),
    Row('head.contrastive.predictor.', 'head.predictor.'),
)
_REGISTERS = ('reg_token', 'register_tokens')
# Scales of a block's two branches, and the layers before these.
_SCALED = {'ls1': 'attn.proj', 'ls2': 'ffn.layers.1'}
_QKV = ('query', 'key', 'value')
# Kinds of checkpoints.
RELEASED = 'a released CMAE checkpoint'
PRETRAINING = 'a pre-training checkpoint'
_OTHER_METHOD = "a pre-training checkpoint of another method's"
_BARE = 'a bare encoder'
_TIMM = 'an MAE or timm encoder'
_CONVMAE = 'a ConvMAE encoder'
_HUGGING_FACE = 'a Hugging Face encoder'
FOREIGN = (_TIMM, _CONVMAE, _HUGGING_FACE)
# What only the checkpoints of mmpretrain's other methods hold: SimMIM's, and
# the momentum encoders of MoCo v3 and BYOL.
_OTHERS = ('neck.decoder.', 'momentum_encoder.', 'target_net.')
# Kinds, and what names begin with in each of them: one of each tuple. The
# first kind that fits is taken.
_SIGNS: Sequence[Any] = (
    (RELEASED, ('target_backbone.', 'pixel_decoder.')),
    (PRETRAINING, ('neck.pixel_decoder.', )),
    (_OTHER_METHOD, ('backbone.', ), _OTHERS),
    ('a fine-tuned model', ('backbone.', ), ('head.', 'neck.')),
    ('an exported backbone', ('backbone.', )),
    (_TIMM, ('blocks.', )),
    (_CONVMAE, ('blocks1.', ), ('blocks3.', )),
    (_HUGGING_FACE, ('encoder.layer.', )),
    (_BARE, ('layers.', ), ('pos_embed', )),
)
# What foreign files hold beside an encoder.
_NO_ENCODER = ('decoder_', 'decoder.', 'mask_token', 'head.', 'fc_norm.',
               'pooler.', 'classifier.', 'embeddings.mask_token')


class FoundEncoder(NamedTuple):
    """An encoder under our names, what held it, and what was done to it."""

    state: StateDict
    kind: str
    left_out: Tuple[str, ...] = ()
    lines: Tuple[str, ...] = ()


def rename(state: StateDict, layout: Layout,
           back: bool = False) -> StateDict:
    """Rename parameters to a library's names, or back to ours.

    Args:
        state (StateDict): A state dict.
        layout (Layout): The library's table.
        back (bool): Whether to rename theirs to ours. Defaults to False.

    Returns:
        StateDict: The renamed state dict. Names that the table lacks are
        kept.

    Raises:
        CheckpointError: If two parameters get the same name.
    """
    renamed: StateDict = {}
    for name, value in state.items():
        new = _rename(name, layout, back)
        if new in renamed:
            raise CheckpointError(f'it holds {new} under two names')
        renamed[new] = value
    return renamed


def _rename(name: str, layout: Layout, back: bool) -> str:
    for row in layout:
        old, new = (row.theirs, row.ours) if back else (row.ours, row.theirs)
        if name.startswith(old):
            rest = name[len(old):]
            for ours, theirs in row.parts.items():
                rest = rest.replace(*((theirs, ours) if back else
                                      (ours, theirs)))
            return new + rest
    return name


def with_prefix(state: StateDict) -> StateDict:
    """Add ``backbone.``, as mmpretrain and mmsegmentation have it."""
    return {f'backbone.{k}': v for k, v in state.items()}


def to_timm(state: StateDict) -> StateDict:
    """Rename an encoder to timm's names."""
    return rename(state, TIMM)


def from_timm(state: StateDict) -> Tuple[StateDict, List[str]]:
    """Rename an encoder of timm, MAE or DINO, and make it a plain one.

    - LayerScale (DINOv2) is multiplied into the layers before it, which
      changes no output.
    - Positions without one of the class token get a zero for it, which
      changes no output either.
    - Register tokens have no place and are left out.

    Args:
        state (StateDict): The encoder under timm's names.

    Returns:
        Tuple[StateDict, List[str]]: The encoder under our names, and a line
        for each change.
    """
    state, lines = rename(state, TIMM, back=True), []
    if _fold_layer_scale(state):
        lines.append('its LayerScale was multiplied into the layers before '
                     'it, which changes nothing')
    for name in _REGISTERS:
        if name in state:
            count = state.pop(name).shape[1]
            lines.append(
                f'left out: its {count} register token(s), without which it '
                'gives other features than it was trained to')
    positions = state.get('pos_embed')
    if 'cls_token' in state and positions is not None and (
            positions.dim() == 3 and square_root(positions.shape[1]) > 1):
        state['pos_embed'] = with_cls_position(positions)
    return state, lines


def _fold_layer_scale(state: StateDict) -> bool:
    """Multiply LayerScale into the layers before it, in place."""
    matches = [re.fullmatch(r'(layers\.\d+\.)(ls[12])\.gamma', k)
               for k in state]
    scales = {m[0]: m[1] + _SCALED[m[2]] for m in matches if m}
    if not all(f'{layer}.weight' in state for layer in scales.values()):
        return False  # a gated MLP, which is refused by its names
    for name, layer in scales.items():
        gamma = state.pop(name)
        for key in (f'{layer}.weight', f'{layer}.bias'):
            if key in state:
                shape = (-1, *[1] * (state[key].dim() - 1))
                state[key] = state[key] * gamma.view(shape)
    return bool(scales)


def square_root(number: int) -> int:
    """Give the square root of a square number, 0 of others."""
    root = round(max(number, 0)**.5)
    return root if root * root == number else 0


def with_cls_position(positions: torch.Tensor) -> torch.Tensor:
    """Add a zero position for the class token, (1, L, D) to (1, 1 + L, D)."""
    return torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)


def to_vit_sam(state: StateDict) -> StateDict:
    """Rename to mmpretrain's ``ViTSAM``, the detection backbone.

    It has no class token and no final norm, and keeps positions as a map,
    (1, H, W, D).
    """
    state = {k: v for k, v in state.items()
             if k != 'cls_token' and not k.startswith('ln1.')}
    positions = state.get('pos_embed')
    side = positions is not None and positions.dim() == 3 and square_root(
        positions.shape[1] - 1)
    if positions is not None and side:
        state['pos_embed'] = positions[:, 1:].reshape(1, side, side, -1)
    return state


def to_mmdet(state: StateDict) -> StateDict:
    """Rename to ``ViTSAM`` in a detector."""
    return with_prefix(to_vit_sam(state))


def to_hf(state: StateDict) -> StateDict:
    """Rename an encoder to Hugging Face's names.

    Queries, keys and values are separate there. ``ViTModel`` cannot leave its
    final norm out: for an encoder without one, the norm only normalises, and
    the tokens before it are ``hidden_states[-1]``.
    """
    width = state['pos_embed'].shape[2]
    norm = {'ln1.weight': torch.ones(width), 'ln1.bias': torch.zeros(width)}
    renamed = {}
    for name, value in rename({**norm, **state}, HUGGING_FACE).items():
        if '.attn.qkv.' in name:
            for part, chunk in zip(_QKV, value.chunk(3)):
                key = f'attention.attention.{part}'
                renamed[name.replace('attn.qkv', key)] = chunk
        else:
            renamed[name] = value
    return renamed


def from_hf(state: StateDict) -> StateDict:
    """Rename an encoder of ``ViTModel`` or ``ViTMAEModel`` to our names.

    Raises:
        CheckpointError: If queries, keys and values are not all there.
    """
    state = rename(state, HUGGING_FACE, back=True)
    for name in [k for k in state if '.attention.attention.query.' in k]:
        keys = [name.replace('.query.', f'.{part}.') for part in _QKV]
        if not all(k in state for k in keys):
            raise CheckpointError(f'it lacks the keys or values to {name}')
        joined = torch.cat([state.pop(k) for k in keys])
        state[name.replace('attention.attention.query', 'attn.qkv')] = joined
    return state


def to_convmae(state: StateDict) -> StateDict:
    """Rename a hybrid encoder to ConvMAE's names."""
    return rename(state, CONVMAE)


def decoder_to_convmae(state: StateDict) -> StateDict:
    """Rename a pixel decoder to ConvMAE's names.

    The class token's position is left out.
    """
    renamed = rename(state, DECODER)
    positions = renamed['decoder_pos_embed'][:, 1:]
    return dict(renamed, decoder_pos_embed=positions)


def to_cmae(state: StateDict) -> StateDict:
    """Rename to the released code's names; leave out what it lacks."""
    ours = tuple(row.ours for row in CMAE)
    return rename({k: v for k, v in state.items() if k.startswith(ours)},
                  CMAE)


def from_cmae(state: StateDict) -> StateDict:
    """Rename a released CMAE state dict to our names."""
    return rename(state, CMAE, back=True)


def _starts(state: StateDict, *prefixes: str) -> bool:
    return any(k.startswith(prefixes) for k in state)


def kind_of(state: StateDict) -> str:
    """Tell the kind of a checkpoint by the names in it.

    Raises:
        CheckpointError: If no encoder is in it.
    """
    for kind, *alternatives in _SIGNS:
        if all(_starts(state, *prefixes) for prefixes in alternatives):
            return kind
    some = ', '.join(sorted(state)[:3])
    raise CheckpointError(
        f'no encoder was found in it (its first keys: {some}); needed is a '
        'CMAE or MAE pre-training checkpoint of this project, a backbone '
        'exported for mmpretrain, a fine-tuned classifier, a released CMAE '
        "checkpoint, an MAE encoder under FAIR's, timm's or Hugging Face's "
        'names, or a ConvMAE checkpoint')


def find_encoder(state: StateDict,
                 encoder: str = 'online') -> FoundEncoder:
    """Find the encoder in a checkpoint by the names of its parameters.

    Args:
        state (StateDict): The checkpoint's tensors.
        encoder (str): 'online', or 'target' where there are both. Defaults to
            'online'.

    Returns:
        FoundEncoder: The encoder under our names, without prefix.

    Raises:
        CheckpointError: If there is none, or not the one asked for.
    """
    if encoder not in ('online', 'target'):
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")
    state = {k.removeprefix('vit.'): v for k, v in state.items()}
    kind = kind_of(state)
    try:
        state, prefix, left_out, lines = _to_ours(state, kind)
    except (IndexError, RuntimeError) as error:  # of shapes
        raise CheckpointError(
            f'it is {kind} by its names, but not by its shapes: {error}'
        ) from error
    if encoder == 'target':
        prefix = 'target.encoder.'
        if not _starts(state, prefix):
            raise CheckpointError(
                f'it is {kind}, which has no target encoder; take the online '
                'one')
    found = {k.removeprefix(prefix): v
             for k, v in state.items() if k.startswith(prefix)}
    if kind == _OTHER_METHOD and found.pop('mask_token', None) is not None:
        lines.append('left out: its mask token')
    return FoundEncoder(found, kind, tuple(sorted(left_out)), tuple(lines))


def _to_ours(state: StateDict, kind: str
             ) -> Tuple[StateDict, str, Set[str], List[str]]:
    """Give our names, the prefix of an encoder, what is left out, changes."""
    if kind == RELEASED:
        left_out = _parts_beside(state)
        return from_cmae(state), 'backbone.', left_out, []
    if kind not in (*FOREIGN, _BARE):
        return state, 'backbone.', _parts_beside(state), []
    lines: List[str] = []
    beside = _NO_ENCODER if kind in FOREIGN else ()
    left_out = {'decoder' if k.startswith('decoder_') else k.split('.')[0]
                for k in state if k.startswith(beside)}
    state = {k: v for k, v in state.items() if not k.startswith(beside)}
    if kind == _TIMM:
        state, lines = from_timm(state)
    elif kind == _CONVMAE:
        state = rename(state, CONVMAE, back=True)
    elif kind == _HUGGING_FACE:
        state = from_hf(state)
    return state, '', left_out, lines


def _parts_beside(state: StateDict) -> Set[str]:
    return {k.split('.')[0] for k in state if not k.startswith(
        ('backbone.', 'target', 'data_preprocessor'))}
