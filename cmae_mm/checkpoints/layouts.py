"""Parameter names of each library: one table for import and export.

"Our names" are those of mmpretrain's ``VisionTransformer`` (``CMAEViT``,
``TransferViT``) and of ``ConvViT``. :func:`rename` uses a table in both
directions.
"""
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..image_size import ImageSize, Pair, find_grid, to_pair
from . import CheckpointError
from .read import StateDict
from .state_dict import grid_of


class Row(NamedTuple):
    """Prefixes in our names and theirs, and replacements in the rest."""

    ours: str
    theirs: str
    parts: Mapping[str, str] = {}


Rows = Sequence[Row]

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
# timm's VisionTransformer; FAIR's MAE and DINO use the same names.
TIMM: Rows = (
    Row('ln1.', 'norm.'),
    Row('patch_embed.projection.', 'patch_embed.proj.'),
    Row('layers.', 'blocks.', _BLOCK),
)
# A classifier on pooled features: timm's with `global_pool='avg'`.
TIMM_CLASSIFIER: Rows = (
    Row('head.fc.', 'head.'),
    Row('backbone.ln2.', 'fc_norm.'),
    *(Row(f'backbone.{row.ours}', row.theirs, row.parts) for row in TIMM),
    Row('backbone.', ''),
)
_HF_BLOCK = {
    '.attn.proj.': '.attention.output.dense.',
    '.ffn.layers.0.0.': '.intermediate.dense.',
    '.ffn.layers.1.': '.output.dense.',
    '.ln1.': '.layernorm_before.',
    '.ln2.': '.layernorm_after.',
    '.ls1.gamma': '.lambda_1',
    '.ls2.gamma': '.lambda_2',
}
HUGGING_FACE: Rows = (
    Row('ln1.', 'layernorm.'),
    Row('cls_token', 'embeddings.cls_token'),
    Row('pos_embed', 'embeddings.position_embeddings'),
    Row('patch_embed.', 'embeddings.patch_embeddings.'),
    Row('layers.', 'encoder.layer.', _HF_BLOCK),
)
# A classifier on pooled features: its BEiT without relative positions.
HF_CLASSIFIER: Rows = (
    Row('head.fc.', 'classifier.'),
    Row('backbone.ln2.', 'beit.pooler.layernorm.'),
    *(Row(f'backbone.{row.ours}', f'beit.{row.theirs}', row.parts)
      for row in HUGGING_FACE),
)
# Its DINOv2, with and without registers, and its Pixio.
DINOV2: Rows = (
    *HUGGING_FACE[:-1],
    Row('layers.', 'encoder.layer.', {
        '.attn.proj.': '.attention.output.dense.',
        '.ls1.gamma': '.layer_scale1.lambda1',
        '.ls2.gamma': '.layer_scale2.lambda1',
        **_BLOCK,
    }),
)
# torchvision's VisionTransformer.
TORCHVISION: Rows = (
    Row('ln1.', 'encoder.ln.'),
    Row('cls_token', 'class_token'),
    Row('pos_embed', 'encoder.pos_embedding'),
    Row('patch_embed.projection.', 'conv_proj.'),
    Row('layers.', 'encoder.layers.encoder_layer_', {
        '.attn.qkv.': '.self_attention.in_proj_',
        '.attn.proj.': '.self_attention.out_proj.',
        '.ffn.layers.0.0.': '.mlp.0.',
        '.ffn.layers.1.': '.mlp.3.',
        '.ln1.': '.ln_1.',
        '.ln2.': '.ln_2.',
    }),
)
# mmsegmentation's own VisionTransformer, which uses torch's attention.
MMSEG: Rows = (
    Row('backbone.layers.', 'backbone.layers.', {
        '.attn.qkv.': '.attn.attn.in_proj_',
        '.attn.proj.': '.attn.attn.out_proj.',
    }),
)
CONVMAE: Rows = (
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
DECODER: Rows = (
    Row('ln1.', 'decoder_norm.'),
    Row('decoder_blocks.', 'decoder_blocks.', _BLOCK),
)
# The pixel decoder of ViTMAEForPreTraining.
HF_DECODER: Rows = (
    Row('ln1.', 'decoder.decoder_norm.'),
    Row('decoder_blocks.', 'decoder.decoder_layers.', _HF_BLOCK),
    Row('', 'decoder.'),
)
# The released CMAE code: the whole model.
CMAE: Rows = (
    Row('target.encoder.', 'target_backbone.'),
    Row('target.projector.', 'target_projector.'),
    Row('backbone.', 'backbone.'),
    Row('neck.pixel_decoder.', 'pixel_decoder.'),
    Row('neck.feature_decoder.', 'feature_decoder.'),
    Row('neck.projector.', 'projector.'),
    Row('head.contrastive.predictor.', 'head.predictor.'),
)


class Layout(NamedTuple):
    """A kind of checkpoint, with its table of names.

    Attributes:
        kind (str): What it is, in words.
        signs (Sequence[tuple[str, ...]]): Prefixes to detect it: one of each
            tuple must occur.
        rows (Rows): Its table. Defaults to none, our names.
        prefix (str): Prefix of the online encoder under our names.
        norm_eps (float, optional): Default epsilon of the library's layer
            norms, where a file may have another one.
    """

    kind: str
    signs: Sequence[tuple[str, ...]]
    rows: Rows = ()
    prefix: str = ''
    norm_eps: float | None = None


_OURS = 'backbone.'
RELEASED = 'a released CMAE checkpoint'
PRETRAINING = 'a pre-training checkpoint'
_OTHER_METHOD = "a pre-training checkpoint of another method's"
_ENCODER = ('backbone.layers.', )
# The first matching layout is used.
_LAYOUTS = (
    Layout(RELEASED, [('target_backbone.', 'pixel_decoder.')], CMAE, _OURS),
    Layout(PRETRAINING, [('neck.pixel_decoder.', )], (), _OURS),
    # SimMIM of mmpretrain, and momentum encoders of MoCo v3 and BYOL.
    Layout(_OTHER_METHOD, [_ENCODER, (
        'neck.decoder.', 'momentum_encoder.', 'target_net.')], (), _OURS),
    Layout('a segmentor of mmsegmentation',
           [('backbone.layers.0.attn.attn.', )], MMSEG, _OURS, 1e-6),
    Layout('a fine-tuned model', [_ENCODER, ('head.', 'neck.')], (), _OURS),
    Layout('an exported backbone', [_ENCODER], (), _OURS),
    Layout('an MAE or timm encoder', [('blocks.', )], TIMM),
    Layout('a ConvMAE encoder', [('blocks1.', ), ('blocks3.', )], CONVMAE),
    Layout('a Hugging Face DINOv2 or Pixio', [
        ('encoder.layer.0.norm1.', )], DINOV2, '', 1e-6),
    Layout('a Hugging Face encoder', [('encoder.layer.', )], HUGGING_FACE,
           '', 1e-12),
    # Rejected, since it has no position embeddings.
    Layout('a Hugging Face DINOv3', [('layer.0.attention.k_proj.', )],
           HUGGING_FACE),
    Layout('a torchvision encoder', [
        ('encoder.layers.encoder_layer_', )], TORCHVISION),
    Layout('a bare encoder', [('layers.', ), ('pos_embed', )]),
)
FOREIGN = tuple(
    layout.kind for layout in _LAYOUTS if layout.rows and not layout.prefix)
# Parts of files of other projects in addition to the encoder.
_NO_ENCODER = ('decoder_', 'decoder.', 'mask_token', 'head.', 'heads.',
               'fc_norm.', 'pooler.', 'classifier.', 'embeddings.mask_token',
               'masked_embed', 'head_dist.', 'cls_classifier.',
               'distillation_classifier.', 'n_averaged')
# Names of the trained encoder in a checkpoint of several.
_TRAINED = ('teacher', 'base_encoder', 'encoder', 'model', 'net', 'backbone',
            'student')
# Modules that wrap other modules, at any depth: compiled ones, and torch's
# FSDP and activation checkpointing. DINOv2's training numbers chunks of
# blocks.
_INNER = re.compile(r'_orig_mod\.|_fsdp_wrapped_module\.|'
                    r'_checkpoint_wrapped_module\.|'
                    r'(?<=blocks\.)\d+\.(?=\d+\.)')
# Includes DeiT's distillation token.
_REGISTERS = ('reg_token', 'register_tokens', 'embeddings.register_tokens',
              'dist_token', 'embeddings.distillation_token')
# LayerScale of a block's two branches, and the previous layers.
_SCALED = {'ls1': 'attn.proj', 'ls2': 'ffn.layers.1'}
_QKV = ('query', 'key', 'value')


class FoundEncoder(NamedTuple):
    """An encoder with our names.

    Attributes:
        state (StateDict): Its tensors, without prefix.
        kind (str): Kind of the checkpoint.
        lines (tuple[str, ...]): Changes, for the log.
        branch (str): 'online', 'target', 'teacher', 'student', or '' for a
            single encoder.
        not_loaded (tuple[str, ...]): Other parts of the checkpoint.
        num_class_tokens (int): Number of class tokens of an encoder of another
            project.
        grid (tuple[int, int], optional): Height and width in patches; None if
            the checkpoint does not record the size of its images.
        norm_eps (float, optional): Default of its kind, see :class:`Layout`.
    """

    state: StateDict
    kind: str
    lines: tuple[str, ...] = ()
    branch: str = ''
    not_loaded: tuple[str, ...] = ()
    num_class_tokens: int = 1
    grid: Pair | None = None
    norm_eps: float | None = None


def rename(state: StateDict, rows: Rows, back: bool = False) -> StateDict:
    """Rename parameters to a library's names, or back to ours.

    Args:
        state (StateDict): A state dict.
        rows (Rows): The library's table.
        back (bool): Whether to rename theirs to ours. Defaults to False.

    Returns:
        StateDict: The renamed state dict. Names that are not in the table are
        unchanged.

    Raises:
        CheckpointError: If two parameters get the same name.
    """
    renamed: StateDict = {}
    for name, value in state.items():
        new = _rename(name, rows, back)
        if new in renamed:
            raise CheckpointError(f'it contains {new} under two names')
        renamed[new] = value
    return renamed


def _rename(name: str, rows: Rows, back: bool) -> str:
    for row in rows:
        old, new = (row.theirs, row.ours) if back else (row.ours, row.theirs)
        if name.startswith(old):
            rest = name[len(old):]
            for pair in row.parts.items():
                rest = rest.replace(*(pair[::-1] if back else pair))
            return new + rest
    return name


def with_zero_positions(positions: torch.Tensor, count: int = 1,
                        start: int = 0) -> torch.Tensor:
    """Insert positions of zero, (1, L, D) to (1, count + L, D)."""
    zeros = torch.zeros_like(positions[:, :1]).expand(-1, count, -1)
    return torch.cat(
        [positions[:, :start], zeros, positions[:, start:]], dim=1)


def count_extra(state: StateDict) -> int:
    """Count an encoder's class tokens and registers."""
    tokens = state.get('cls_token')
    return tokens.shape[1] if tokens is not None and tokens.dim() == 3 else 0


def match_registers(state: StateDict, expected: StateDict
                    ) -> tuple[StateDict, list[str]]:
    """Adapt the number of register tokens of an encoder to a module.

    Surplus tokens are removed with their positions; missing ones are taken
    from the module.

    Args:
        state (StateDict): The encoder.
        expected (StateDict): The module's state dict.

    Returns:
        tuple: The encoder, and lines for the log.
    """
    names = ('cls_token', 'pos_embed')
    if not all(name in s for s in (state, expected) for name in names) or (
            state['cls_token'].shape[2:] != expected['cls_token'].shape[2:]):
        return state, []
    theirs, ours = map(count_extra, (state, expected))
    if theirs == ours:
        return state, []
    # Modules on the meta device are for comparison only.
    added = [torch.zeros_like(own, device='cpu') if own.is_meta else own
             for own in (expected[name][:, theirs:ours] for name in names)]
    line = (f'new, not from the checkpoint: {ours - theirs} register token(s)'
            if theirs < ours else
            f'not loaded: {theirs - ours} of its register tokens, which '
            'changes its features')
    tokens, positions = (state[name] for name in names)
    kept = min(theirs, ours)
    return dict(
        state, cls_token=torch.cat([tokens[:, :kept], added[0]], dim=1),
        pos_embed=torch.cat([positions[:, :kept], added[1],
                             positions[:, theirs:]], dim=1)), [line]


# Export


def with_prefix(state: StateDict) -> StateDict:
    """Add the prefix ``backbone.`` of mmpretrain and mmsegmentation."""
    return {f'backbone.{k}': v for k, v in state.items()}


def to_timm(state: StateDict) -> StateDict:
    """Rename an encoder to timm's names.

    timm's encoders with registers have positions of patches only.
    """
    count = count_extra(state)
    if count > 1:
        positions = state['pos_embed']
        tokens = state['cls_token'] + positions[:, :count]
        state = dict(state, cls_token=tokens[:, :1], reg_token=tokens[:, 1:],
                     pos_embed=positions[:, count:])
    return rename(state, TIMM)


def to_vit_sam(state: StateDict, grid: Pair | None = None) -> StateDict:
    """Convert to mmpretrain's ``ViTSAM``, the detection backbone.

    It has no class token and no final norm, and its positions are a map,
    (1, H, W, D).

    Args:
        state (StateDict): The encoder.
        grid (tuple[int, int], optional): Height and width in patches.
            Defaults to a square.
    """
    count = count_extra(state)
    state = {k: v for k, v in state.items()
             if k != 'cls_token' and not k.startswith('ln1.')}
    positions = state.get('pos_embed')
    if positions is not None and positions.dim() == 3:
        grid = find_grid(positions.shape[1] - count, grid)
        if grid is not None:
            state['pos_embed'] = positions[:, count:].reshape(1, *grid, -1)
    return state


def to_mmdet(state: StateDict, grid: Pair | None = None) -> StateDict:
    """Convert to ``ViTSAM`` in a detector."""
    return with_prefix(to_vit_sam(state, grid))


def to_hf(state: StateDict) -> StateDict:
    """Convert an encoder to Hugging Face's names.

    ``ViTModel`` always has a final norm: for an encoder without one, it has
    weights 1 and biases 0, and the tokens before it are
    ``hidden_states[-1]``.
    """
    width = state['pos_embed'].shape[2]
    norm = {'ln1.weight': torch.ones(width), 'ln1.bias': torch.zeros(width)}
    return _split_qkv({**norm, **state}, HUGGING_FACE)


def to_hf_vit(state: StateDict) -> StateDict:
    """Convert to ``ViTModel``, whose pooler returns the class token."""
    width = state['pos_embed'].shape[2]
    return to_hf(state) | {'pooler.dense.weight': torch.eye(width),
                           'pooler.dense.bias': torch.zeros(width)}


def to_hf_pretraining(encoder: StateDict, decoder: StateDict) -> StateDict:
    """Convert an encoder and a pixel decoder to ``ViTMAEForPreTraining``."""
    state = {f'vit.{k}': v for k, v in to_hf(encoder).items()}
    return state | _split_qkv(decoder, HF_DECODER)


def to_hf_classifier(state: StateDict) -> StateDict:
    """Convert a classifier to ``BeitForImageClassification``.

    Its keys have no bias. A bias of keys does not change attention, since it
    adds the same value to all scores of a query.
    """
    return {k: v for k, v in _split_qkv(state, HF_CLASSIFIER).items()
            if not k.endswith('.attention.key.bias')}


def _split_qkv(state: StateDict, rows: Rows) -> StateDict:
    """Rename, and separate queries, keys and values."""
    renamed = {}
    for name, value in rename(state, rows).items():
        if '.attn.qkv.' in name:
            for part, chunk in zip(_QKV, value.chunk(3)):
                key = f'attention.attention.{part}'
                renamed[name.replace('attn.qkv', key)] = chunk
        else:
            renamed[name] = value
    return renamed


def to_convmae(state: StateDict) -> StateDict:
    """Rename a hybrid encoder to ConvMAE's names."""
    return rename(state, CONVMAE)


def decoder_to_convmae(state: StateDict) -> StateDict:
    """Rename a pixel decoder, without the class token's position."""
    renamed = rename(state, DECODER)
    if 'decoder_pos_embed' in renamed:
        renamed['decoder_pos_embed'] = renamed['decoder_pos_embed'][:, 1:]
    return renamed


def to_cmae(state: StateDict) -> StateDict:
    """Rename to the released code's names; drop other parameters."""
    ours = tuple(row.ours for row in CMAE)
    return rename({k: v for k, v in state.items() if k.startswith(ours)},
                  CMAE)


# Import


def from_cmae(state: StateDict) -> StateDict:
    """Rename a released CMAE state dict to our names."""
    return rename(state, CMAE, back=True)


def _has_prefix(state: StateDict, prefixes: tuple[str, ...]) -> bool:
    return any(k.startswith(prefixes) for k in state)


def _without_prefix(state: StateDict, prefix: str) -> StateDict:
    return {k[len(prefix):]: v for k, v in state.items()
            if k.startswith(prefix)}


def _layout_of(state: StateDict) -> Any:
    for layout in _LAYOUTS:
        if all(_has_prefix(state, prefixes) for prefixes in layout.signs):
            return layout
    return None


def is_released(state: StateDict) -> bool:
    """Whether a state dict is a released CMAE checkpoint."""
    return getattr(_layout_of(state), 'kind', '') == RELEASED


def _unwrap(state: StateDict, encoder: str
            ) -> tuple[StateDict, Layout, list[str], set[str]]:
    """Remove prefixes of wrappers.

    Returns:
        tuple: The tensors without prefixes, their layout, lines for the log,
        and the names of other parts.

    Raises:
        CheckpointError: If no layout is recognised, or behind several
            prefixes.
    """
    removed = {m[0] for name in state for m in _INNER.finditer(name)}
    if removed:
        state = {_INNER.sub('', k): v for k, v in state.items()}
    prefix, beside = _find_prefix(state, encoder), set()
    if prefix:
        removed.add(prefix)
        beside = {_part_beside(k, prefix) for k in state
                  if not k.startswith(prefix)}
        state = _without_prefix(state, prefix)
    names = ', '.join(sorted(map(repr, removed)))
    return state, _layout_of(state), (
        [f'removed from its names: {names}'] if removed else []), beside


def _find_prefix(state: StateDict, encoder: str) -> str:
    """Find the shortest prefix behind which a layout is recognised."""
    if _layout_of(state):
        return ''
    # Not within a list of layers, as of a Swin transformer.
    starts = {re.split(r'(?<=\.)\d+\.', name)[0] for name in state}
    prefixes = {s[:m.end()] for s in starts for m in re.finditer(r'\.', s)}
    found: list[str] = []
    for prefix in sorted(prefixes, key=lambda p: (len(p), p)):
        if not prefix.startswith(tuple(found)) and (
                _layout_of(_without_prefix(state, prefix))):
            found.append(prefix)
    for word in ('student', *_TRAINED) if encoder == 'student' else _TRAINED:
        trained = [p for p in found if f'.{p}'.count(f'.{word}')]
        found = trained if len(trained) == 1 else found
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f'it contains several encoders ({", ".join(found[:4])}); save the '
            'state dict of one of them')
    some = ', '.join(sorted(state)[:3])
    raise CheckpointError(
        f'no vision transformer was found in it (its first keys: {some}); '
        'docs/checkpoints.md lists the files that are read')


def _part_beside(name: str, prefix: str) -> str:
    """Return the first part of a name that is not in a prefix."""
    parts, shared = name.split('.'), prefix.split('.')
    depth = next((i for i, part in enumerate(parts) if part != shared[i]), 0)
    return '.'.join(parts[:depth + 1])


def find_encoder(state: StateDict,
                 encoder: str = 'online',
                 record: Mapping[str, Any] = {},
                 img_size: ImageSize | None = None) -> FoundEncoder:
    """Find the encoder in a checkpoint by the names of its parameters.

    Args:
        state (StateDict): The checkpoint's tensors.
        encoder (str): 'online' or 'target'; for DINO and iBOT also 'teacher',
            the same as 'online', or 'student'. Defaults to 'online'.
        record (Mapping[str, Any]): Recorded settings of the encoder. Defaults
            to nothing.
        img_size (int | Sequence[int], optional): Size of its images in
            pixels, if it notes none. Defaults to squares.

    Returns:
        FoundEncoder: The encoder under our names, without prefix.

    Raises:
        CheckpointError: If there is no encoder, or not the requested one.
    """
    choices = ('online', 'target', 'teacher', 'student')
    if encoder not in choices:
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")
    if any('.lora_' in name for name in state):
        raise CheckpointError(
            'it contains adapters (LoRA) of an encoder; merge them into its '
            'weights with `model.merge_and_unload()` of peft, and save it '
            'again')
    if encoder in choices[2:] and not any(encoder in name for name in state):
        raise CheckpointError(f'it has no {encoder}; use the online encoder')
    branch = _branch_of(state, encoder)
    state, layout, lines, not_loaded = _unwrap(state, encoder)
    kind, prefix, classes = layout.kind, layout.prefix, 1
    try:
        if layout.kind in FOREIGN:
            not_loaded |= {
                _part(k) for k in state if k.startswith(_NO_ENCODER)}
            state = {k: v for k, v in state.items()
                     if not k.startswith(_NO_ENCODER)}
        elif prefix:
            not_loaded |= {_part(k) for k in state if not k.startswith(
                (prefix, 'target', 'data_preprocessor'))}
        state = rename(state, layout.rows, back=True)
        if layout.kind in FOREIGN:
            classes = count_extra(state)
            lines += _make_plain(state, record.get('img_size', img_size))
    except (IndexError, RuntimeError) as error:  # of shapes
        raise CheckpointError(
            f'it is {kind} by its names, but not by its shapes: {error}'
        ) from error
    if encoder == 'target':
        prefix = 'target.encoder.'
        if not _has_prefix(state, (prefix, )):
            raise CheckpointError(
                f'it is {kind}, which has no target encoder; use the online '
                'one')
    found = {k.removeprefix(prefix): v
             for k, v in state.items() if k.startswith(prefix)}
    _check_numbers(found)
    if layout.rows is MMSEG and 'patch_embed.projection.weight' in found:
        # patch_bias=False is its default
        width = len(found['patch_embed.projection.weight'])
        found.setdefault('patch_embed.projection.bias', torch.zeros(width))
    if kind == _OTHER_METHOD and found.pop('mask_token', None) is not None:
        lines.append('not loaded: its mask token')
    return FoundEncoder(found, kind, tuple(lines), branch,
                        tuple(sorted(not_loaded)), classes,
                        grid_of(found, record), layout.norm_eps)


def _check_numbers(state: StateDict) -> None:
    """Check that no layer is missing between others."""
    numbers = {int(m[1]) for m in (
        re.match(r'layers\.(\d+)\.', name) for name in state) if m}
    lacking = next((n for n in range(len(numbers)) if n not in numbers), None)
    if lacking is not None:
        raise CheckpointError(
            f'its layer {lacking} is missing (counted from 0), but there is '
            f'layer {max(numbers)}: it is incomplete')


def _branch_of(state: StateDict, encoder: str) -> str:
    """Return the name of the selected encoder, '' if there is only one."""
    if encoder != 'online':
        return encoder
    return next((branch for branch, sign in (
        ('teacher', 'teacher'), ('student', 'student'),
        ('online', 'target')) if _has_prefix(state, (sign, ))), '')


def _part(name: str) -> str:
    name = name.removeprefix('embeddings.')
    return 'decoder' if name.startswith('decoder_') else name.split('.')[0]


def _make_plain(state: StateDict,
                img_size: ImageSize | None) -> list[str]:
    """Convert an encoder of another project to a plain one, in place.

    - Queries, keys and values become one layer.
    - LayerScale (DINOv2) is multiplied into the layers before it.
    - Register tokens follow the class token, with positions of zero.
    - A missing position of the class token is set to zero.

    Returns:
        list[str]: Lines for the log.
    """
    lines = []
    _join_qkv(state)
    if _fold_layer_scale(state):
        lines.append('its LayerScale was multiplied into the previous layers, '
                     'which does not change outputs')
    positions, cls_token = state.get('pos_embed'), state.get('cls_token')
    if cls_token is None:
        return lines
    if positions is None:
        raise CheckpointError(
            'it has no position embeddings; rotary (DINOv3) and relative '
            'positions (BEiT) are not supported')
    registers = next((state.pop(k) for k in _REGISTERS if k in state), None)
    count = 0 if registers is None else registers.shape[1]
    length = positions.shape[1]
    patches = _count_patches(
        state, img_size, (length - 1, length, length - 1 - count))
    if positions.dim() == 3 and length > 1 and length == patches:
        positions = with_zero_positions(positions)
    if registers is not None:
        cls_token = torch.cat([cls_token, registers], dim=1)
        if positions.shape[1] == 1 + patches:  # without registers
            positions = with_zero_positions(positions, count, 1)
        lines.append(f'it has {count} register token(s)')
    state.update(pos_embed=positions, cls_token=cls_token)
    return lines


def _count_patches(state: StateDict, img_size: ImageSize | None,
                   choices: Sequence[int]) -> int:
    """Choose the number of patches from the image size or a square."""
    weight = state.get('patch_embed.projection.weight')
    if weight is not None and img_size is not None and weight.shape[-1]:
        height, width = to_pair(img_size)
        known = (height // weight.shape[-1]) * (width // weight.shape[-1])
        if known in choices:
            return known
    return next((n for n in choices if find_grid(n)), 0)


def _join_qkv(state: StateDict) -> None:
    for name in [k for k in state if '.attention.attention.query.' in k]:
        keys = [name.replace('.query.', f'.{part}.') for part in _QKV]
        if name.endswith('.bias'):  # BEiT's keys have none
            state.setdefault(keys[1], torch.zeros_like(state[name]))
        if not all(k in state for k in keys):
            raise CheckpointError(f'it lacks the keys or values to {name}')
        joined = torch.cat([state.pop(k) for k in keys])
        state[name.replace('attention.attention.query', 'attn.qkv')] = joined


def _fold_layer_scale(state: StateDict) -> bool:
    matches = [re.fullmatch(r'(layers\.\d+\.)(ls[12])\.gamma', k)
               for k in state]
    scales = {m[0]: m[1] + _SCALED[m[2]] for m in matches if m}
    if not all(f'{layer}.weight' in state for layer in scales.values()):
        return False  # a gated MLP, rejected by its names
    for name, layer in scales.items():
        gamma = state.pop(name)
        for key in (f'{layer}.weight', f'{layer}.bias'):
            if key in state:
                shape = (-1, *[1] * (state[key].dim() - 1))
                state[key] = state[key] * gamma.view(shape)
    return bool(scales)
