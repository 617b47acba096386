"""Loading encoders and models from any supported file."""
import logging
import math
import re
from collections.abc import Mapping, Sequence
from re import Pattern
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, WEIGHT_INITIALIZERS
from torch import nn

from ..files import PathLike
from ..image_size import (ImageSize, Pair, divide, find_grid, format_size,
                          to_size)
from . import CheckpointError, layouts, prefix_errors
from .encoder_config import (NORM_EPS, encoder_record, norm_eps,
                             read_encoder_record)
from .layouts import FoundEncoder, find_encoder
from .read import Checkpoint, StateDict, read_checkpoint
from .state_dict import (KINDS, KeyReport, Sizes, check_fit, grid_of,
                         is_hybrid, load_state, read_sizes)

# Value of a checkpoint's path for random weights.
RANDOM = 'random'
# Start of a line that is logged as a warning.
_DOUBT = 'warning:'
# Settings that are numbers of layers.
_DEPTHS = r'(depth|num_layers|depths\.\d+)$'
# Tensors that sizes follow from, and their dimensions.
_NEEDED = {'patch_embed.projection.weight': 4, 'pos_embed': 3,
           'layers.0.ffn.layers.0.0.weight': 2,
           'conv_stages.0.blocks.0.depthwise.weight': 4}
# Parts of an encoder that a backbone may not have.
_SPARE = {'ln1.': 'final norm', 'fusions.': 'fusion layers'}
# Parts of a backbone that no encoder has: the norm of pooled features,
# relative positions, and a mask token, which whole images do not use.
_NEW = re.compile(r'^ln2\.|\.rel_pos_[hw]$|^mask_token$')


class FittedEncoder(NamedTuple):
    """An encoder that fits a backbone, its report, and lines for the log."""

    state: StateDict
    report: KeyReport
    lines: list[str]


class LoadedEncoder(NamedTuple):
    """An encoder as a module, and its settings.

    Args:
        backbone (TransferViT | TransferConvViT): In evaluation mode, with
            ``out_type='raw'``.
        record (dict[str, Any]): See
            :func:`~cmae_mm.checkpoints.encoder_config.encoder_record`.
        lines (list[str]): Lines for the log.
        config (dict[str, Any]): Config of the backbone.
    """

    backbone: nn.Module
    record: dict[str, Any]
    lines: list[str]
    config: dict[str, Any]


def load_encoder(checkpoint: str,
                 encoder: str = 'online',
                 img_size: ImageSize | None = None,
                 num_heads: int | None = None) -> LoadedEncoder:
    """Load the encoder of a checkpoint; no config is needed.

    Args:
        checkpoint (str): A file supported by :func:`find_encoder`.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        img_size (int | Sequence[int], optional): Image size in pixels to
            resample positions to: the side of a square, or (height, width).
            Defaults to the checkpoint's.
        num_heads (int, optional): Number of attention heads, for checkpoints
            that do not record it and have no named architecture.

    Returns:
        LoadedEncoder: On the CPU.

    Raises:
        CheckpointError: If the file cannot be read, or contains no such
            encoder.
    """
    with prefix_errors(checkpoint):
        _, found, record = read_encoder(checkpoint, encoder, img_size)
        loaded = build_encoder(found, record, encoder, img_size, num_heads)
    loaded.lines[0] = f'{checkpoint} is {loaded.lines[0]}'
    return loaded


def read_encoder(checkpoint: str, encoder: str = 'online',
                 img_size: ImageSize | None = None
                 ) -> tuple[Checkpoint, FoundEncoder, dict[str, Any]]:
    """Read a file, and find its encoder.

    Args:
        checkpoint (str): The file.
        encoder (str): See :func:`find_encoder`. Defaults to 'online'.
        img_size (int | Sequence[int], optional): See :func:`find_encoder`.

    Returns:
        tuple: The file's content, the encoder, and its settings. The encoder's
        lines contain what the file does not record, and doubts.

    Raises:
        CheckpointError: If there is no such encoder.
    """
    content = read_checkpoint(checkpoint)
    record = read_encoder_record(content.meta)
    found = find_encoder(content.state, encoder, record, img_size)
    lines = _check_depth(found, record)
    if found.norm_eps is not None and 'norm_eps' not in record:
        record['norm_eps'] = found.norm_eps
        lines.append(f'its layer norms are assumed to have eps='
                     f'{found.norm_eps}, which it does not record '
                     '(layer_norm_eps of config.json)')
    return content, found._replace(lines=(*found.lines, *lines)), record


def build_encoder(found: FoundEncoder, record: dict[str, Any],
                  encoder: str = 'online',
                  img_size: ImageSize | None = None,
                  num_heads: int | None = None) -> LoadedEncoder:
    """Build the module for an encoder's tensors.

    Args:
        found (FoundEncoder): The encoder.
        record (dict[str, Any]): Its settings, see :class:`LoadedEncoder`.
        encoder (str): Name of the encoder. Defaults to 'online'.
        img_size (int | Sequence[int], optional): See :func:`load_encoder`.
        num_heads (int, optional): See :func:`load_encoder`.

    Returns:
        LoadedEncoder: On the CPU.

    Raises:
        CheckpointError: If there is no such module.
    """
    state = dict(found.state)
    if encoder == 'target' and not is_hybrid(state) and not record.get(
            'target_with_cls_token', True) and 'pos_embed' in state:
        state['pos_embed'] = state['pos_embed'][
            :, layouts.count_extra(state):]
        state.pop('cls_token', None)
    kind, settings, grid = _settings_of(
        found._replace(state=state),
        {'num_class_tokens': found.num_class_tokens, **record},
        img_size, num_heads)
    try:
        with torch.device('meta'):  # sizes are compared before memory is taken
            backbone = MODELS.get(kind)(**settings)
        backbone.out_type = 'raw'
        fitted = fit(backbone, found._replace(state=state), new=None,
                     assumed=grid, most_listed=10,
                     advice='it is not a vision transformer of this project')
    except CheckpointError:
        raise
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        reason = str(error).partition('\n')[0]
        raise CheckpointError(
            'its encoder cannot be built for images of '
            f'{format_size(settings["img_size"])} pixels: {reason}') from error
    backbone.to_empty(device='cpu').load_state_dict(fitted.state)
    return LoadedEncoder(backbone.eval(), record, fitted.lines,
                         dict(settings, type=kind))


def _settings_of(found: FoundEncoder, record: dict[str, Any],
                 img_size: ImageSize | None, num_heads: int | None
                 ) -> tuple[str, dict[str, Any], Pair]:
    """Derive the name, the arguments and the grid of an encoder."""
    state, sizes = found.state, read_sizes(found.state)
    hybrid = is_hybrid(state)
    if any('.rel_pos_' in name for name in state) or (
            'pos_embed' in state and state['pos_embed'].dim() == 4):
        raise CheckpointError(
            'its encoder has a map of positions or relative positions for '
            'detection; it can initialise TransferViTDet only (init_cfg)')
    wrong = [name for name, dims in _NEEDED.items() if (
        state[name].dim() if name in state else 0) != dims and (
            hybrid or not name.startswith('conv_stages.'))]
    if wrong or sizes is None:
        raise CheckpointError(
            f'its encoder is not {KINDS[hybrid]}, or it is incomplete: '
            f'{", ".join(wrong or ["the layers"])} are missing or of another '
            'shape')
    depth = sizes.depths[-1]
    if record.get('num_layers', depth) != depth:
        raise CheckpointError(
            f'its config.json says {record["num_layers"]} layers, but its '
            f'weights are of {depth}: they are incomplete')
    tokens, width = layouts.count_extra(state), sizes.widths[-1]
    grid, size = _find_sizes(state['pos_embed'].shape[1], tokens,
                             math.prod(sizes.patches), img_size, found.grid)
    hidden = len(state['layers.0.ffn.layers.0.0.weight'])
    first = 'conv_stages.0.patch_embed' if hybrid else 'patch_embed'
    settings: dict[str, Any] = dict(
        img_size=size,
        in_channels=state[f'{first}.projection.weight'].shape[1],
        qkv_bias='layers.0.attn.qkv.bias' in state,
        final_norm='ln1.weight' in state,
        # with a classifier's norm of pooled features
        out_type='avg_featmap' if 'ln2.weight' in state else 'raw')
    if record.get('norm_eps', NORM_EPS) != NORM_EPS:
        settings['norm_cfg'] = dict(type='LN', eps=record['norm_eps'])
    if hybrid:
        kind = 'TransferConvViT'
        arch: dict[str, Any] = dict(
            embed_dims=sizes.widths, depths=sizes.depths)
        kernel = state['conv_stages.0.blocks.0.depthwise.weight'].shape[-1]
        settings.update(
            patch_sizes=sizes.patches, mlp_ratio=hidden / width,
            kernel_size=kernel, with_fusion='fusions.0.weight' in state)
    else:
        kind = 'TransferViT'
        arch = dict(embed_dims=width, num_layers=depth,
                    feedforward_channels=hidden)
        settings.update(patch_size=sizes.patches[0])
        classes = min(record['num_class_tokens'], tokens)
        if 'cls_token' not in state:
            settings.update(with_cls_token=False)
        elif (tokens, classes) != (1, 1):
            settings.update(num_class_tokens=classes,
                            num_registers=tokens - classes)
    arch['num_heads'] = _find_heads(kind, sizes, arch, record, num_heads)
    return kind, dict(settings, arch=arch), grid


def _find_sizes(positions: int, num_extra: int, patch: int,
                img_size: ImageSize | None, recorded: Pair | None
                ) -> tuple[Pair, ImageSize]:
    """Find the grid of positions, and the size of images in pixels."""
    given, count = None, positions - num_extra
    if img_size is not None:
        try:
            given = divide(img_size, patch)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    grid = find_grid(count, recorded, given)
    if grid is None:
        others = f' or img_size={format_size(img_size)}' if img_size else ''
        hint = ' (or it lacks its class token)' if not num_extra and (
            find_grid(count - 1)) else ''
        raise CheckpointError(
            f'its {count} positions of patches are not those of a square'
            f'{others}{hint}, and it does not record the image size; give the '
            'height and width of its images (img_size=, --img-size), which '
            f'are {count} patches of {patch} pixels')
    rows, columns = given or grid
    return grid, to_size((rows * patch, columns * patch))


def _find_heads(kind: str, sizes: Sizes, arch: dict[str, Any],
                record: dict[str, Any], given: int | None) -> int:
    """Find the number of heads, which shapes do not determine."""
    recorded = record.get('num_heads')
    if given is not None and recorded is not None and given != recorded:
        raise CheckpointError(
            f'it records {recorded} heads, but num_heads={given} was given; '
            'remove num_heads')
    named = {a['num_heads'] for a in MODELS.get(kind).arch_zoo.values()
             if all(a[k] == v for k, v in arch.items())}
    heads = recorded if given is None else given
    if heads is None and len(named) == 1:
        heads = named.pop()
    if heads is None:
        depths = _known_depths(sizes, len(sizes.widths) > 1)
        other = f' (of its width they have {depths} layers)' if depths else ''
        raise CheckpointError(
            'it does not record the number of attention heads of its encoder, '
            f'which is {sizes}, and no named architecture has these sizes'
            f'{other}; set num_heads=')
    if sizes.widths[-1] % heads:
        raise CheckpointError(f'num_heads={heads} does not divide the width '
                              f'of {sizes.widths[-1]}')
    return heads


def fit_encoder(module: nn.Module, checkpoint: str,
                encoder: str = 'online') -> FittedEncoder:
    """Fit a pre-trained encoder to a backbone, without loading it.

    Its arguments and errors are those of :func:`load_encoder_into`.
    """
    if not checkpoint:
        raise CheckpointError(
            'no checkpoint was given: set model.backbone.init_cfg.checkpoint '
            f'to a file, or to {RANDOM!r} to start from random weights')
    with prefix_errors(checkpoint):
        _, found, record = read_encoder(
            checkpoint, encoder, getattr(module, 'img_size', None))
        _check_heads(module, record)
        fitted = fit(
            module, found, most_listed=10, advice="the model must have the "
            "encoder's width, depth and patch size")
    _compare_eps(module, record, fitted.lines)
    fitted.lines[0] = f'{checkpoint} is {fitted.lines[0]}'
    return fitted


def _check_heads(module: nn.Module, record: dict[str, Any]) -> None:
    """Check the number of heads, which shapes do not determine."""
    arch = getattr(module, 'arch_settings', None)
    heads = arch.get('num_heads') if isinstance(arch, dict) else None
    recorded = record.get('num_heads')
    if None not in (recorded, heads) and recorded != heads:
        raise CheckpointError(
            f'its encoder has {recorded} attention heads, the model {heads}; '
            "set num_heads of backbone.arch to the encoder's")


def _compare_eps(module: nn.Module, record: dict[str, Any],
                 lines: list[str]) -> None:
    """Log a different epsilon of the layer norms, which changes features."""
    theirs, ours = record.get('norm_eps', NORM_EPS), norm_eps(module)
    if theirs != ours:
        lines.append(
            f'its layer norms have eps={theirs}, those of the model {ours}; '
            f'norm_cfg=dict(type="LN", eps={theirs}) of the backbone '
            'reproduces its features exactly')


def _known_depths(sizes: Sizes, hybrid: bool) -> list[int]:
    """List the depths of named architectures of an encoder's width."""
    zoo = MODELS.get('TransferConvViT' if hybrid else 'TransferViT').arch_zoo
    return sorted({a['depths'][-1] if hybrid else a['num_layers']
                   for a in zoo.values()
                   if sizes.widths in (a['embed_dims'], [a['embed_dims']])})


def _check_depth(found: FoundEncoder, record: Mapping[str, Any]) -> list[str]:
    """Warn of a depth that no known encoder has, if it is not recorded.

    A file that lacks its last layers is a shallower encoder.
    """
    sizes, hybrid = read_sizes(found.state), is_hybrid(found.state)
    if sizes is None or record.keys() & {'num_heads', 'num_layers'}:
        return []
    depths = _known_depths(sizes, hybrid)
    doubts = []
    if sizes.depths[-1] not in depths:
        known = ' or '.join(map(str, depths))
        doubts = [f'named architectures of its width have {known} layers'
                  if depths else 'no named architecture has its width']
    if found.kind in layouts.FOREIGN and not (
            'fc_norm' in found.not_loaded or 'ln1.weight' in found.state):
        doubts.append('it has no final norm')
    return [f'{_DOUBT} its last layers may be missing: {", ".join(doubts)}'
            ] if doubts else []


def log_loaded(lines: Sequence[str]) -> None:
    """Log what was loaded, as a warning if there are doubts."""
    doubts = any(line.startswith(_DOUBT) for line in lines)
    print_log('\n'.join(lines), logger='current',
              level=logging.WARNING if doubts else logging.INFO)


def _find_grid(module: nn.Module, found: FoundEncoder, lines: list[str]
               ) -> Pair | None:
    """Find the grid of the positions of an encoder for a module."""
    positions = found.state.get('pos_embed')
    own = getattr(module, 'patch_resolution', None)
    if found.grid is not None or positions is None or positions.dim() != 3:
        return found.grid
    count = positions.shape[1] - layouts.count_extra(found.state)
    grid = find_grid(count) or find_grid(count, own)
    if grid is None and 'cls_token' not in found.state and (
            find_grid(count - 1)):
        return None  # its class token is missing, which is reported
    if grid is None:
        raise CheckpointError(
            f'its {count} positions of patches are neither those of a square '
            "nor of the model's images, and it does not record the image "
            'size; use a folder of timm or transformers, whose config.json '
            'records it')
    other = f", not as the model's {own[0]}x{own[1]}" if own and (
        grid != tuple(own) and count == math.prod(own)) else ''
    lines.append(_assumed(grid) + other)
    return grid


def _assumed(grid: Pair) -> str:
    """Report a grid that the checkpoint does not record."""
    return ('it does not record the image size; its positions are taken as '
            f'{grid[0]}x{grid[1]} patches')


def fit(module: nn.Module, found: FoundEncoder,
        new: Pattern | None = _NEW, assumed: Pair | None = None,
        **options: Any) -> FittedEncoder:
    """Fit an encoder to a module.

    Args:
        module (nn.Module): The module.
        found (FoundEncoder): The encoder.
        new (Pattern, optional): Names of the module that encoders do not have.
        assumed (tuple[int, int], optional): Grid of its positions in patches,
            if it records none. Defaults to a square, or the module's grid.
        **options: Other arguments of :func:`check_fit`.

    Returns:
        FittedEncoder: Its tensors, with the register tokens of the module.
    """
    expected, state = module.state_dict(), found.state
    lines = list(found.lines)
    if found.grid is None and assumed is not None:
        lines.append(_assumed(assumed))
        found = found._replace(grid=assumed)
    grid = _find_grid(module, found, lines)
    positions = expected.get('pos_embed')
    if positions is not None and positions.dim() == 4:
        state = layouts.to_vit_sam(state, grid)
    state, changes = layouts.match_registers(state, expected)
    lines += changes
    spared = [k for k in state
              if k.startswith(tuple(_SPARE)) and k not in expected]
    state = {k: v for k, v in state.items() if k not in spared}
    made_new = [k for k in expected
                if new and new.search(k) and k not in state]
    fitted, report = check_fit(
        module, state, optional=made_new, inflate=True,
        grid=grid, **options)
    name = f'{found.branch} encoder'.lstrip()
    lines.insert(0, f'{found.kind}; its {name} was loaded: all {report}')
    lines.insert(1, _describe(module, found.state))
    types = {str(v.dtype) for k, v in fitted.items()
             if v.dtype != expected[k].dtype}
    if types:
        lines.append(f'converted from {", ".join(sorted(types))}')
    not_loaded = [what for prefix, what in _SPARE.items()
                if any(k.startswith(prefix) for k in spared)]
    not_loaded += found.not_loaded
    if not_loaded:
        lines.append(f'not loaded: its {", ".join(not_loaded)}')
    if made_new:
        lines.append(f'new, not from the checkpoint: {", ".join(made_new)}')
    return FittedEncoder(fitted, report, lines)


def _describe(module: nn.Module, state: StateDict) -> str:
    """Describe the encoder that was found, in one line."""
    heads = getattr(module, 'arch_settings', {}).get('num_heads')
    positions = state.get('pos_embed')
    return f'it is {read_sizes(state)}' + (
        f', with {heads} heads' if heads else '') + (
            '' if positions is None or positions.dim() != 3 else
            f' and {positions.shape[1]} positions')


def from_released(model: nn.Module,
                  state: StateDict) -> tuple[StateDict, list[str]]:
    """Rename a released CMAE checkpoint for a model.

    Args:
        model (CMAE): The model, built for the checkpoint's sizes.
        state (StateDict): The state dict under the released code's names.

    Returns:
        tuple[StateDict, list[str]]: The state dict with the model's names, and
        optional names.
    """
    state = layouts.from_cmae(state)
    target = getattr(model, 'target', None)
    if target is None or target.with_cls_token:
        return state, []
    # A target without class token may have a position for it or not.
    name = 'target.encoder.pos_embed'
    positions, length = state.get(name), model.backbone.pos_embed.shape[1]
    if positions is not None and positions.dim() == 3 and (
            positions.shape[1] == length - 1):
        state[name] = layouts.with_zero_positions(positions)
    return state, ['target.encoder.cls_token']


def select_encoder(model: nn.Module, encoder: str) -> nn.Module:
    """Return the online or the target encoder of a model.

    Args:
        model (CMAE): The model.
        encoder (str): 'online' or 'target'.

    Returns:
        CMAEViT | CMAEConvViT: The encoder.

    Raises:
        CheckpointError: If the model has no such encoder.
    """
    if encoder not in ('online', 'target'):
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")
    if encoder == 'online':
        return model.backbone
    if getattr(model, 'target', None) is None:
        raise CheckpointError(
            'the model has no target encoder, since head.contrastive is None')
    return model.target.encoder


def load_model(model: nn.Module, state: StateDict,
               record: Mapping[str, Any] = {}) -> KeyReport:
    """Load a whole model, with our names or the released code's.

    Args:
        model (nn.Module): The model, built for the checkpoint's sizes.
        state (StateDict): The checkpoint's tensors.
        record (Mapping[str, Any]): Recorded settings of the encoder. Defaults
            to none.

    Returns:
        KeyReport: Matched and other keys.

    Raises:
        CheckpointError: See :func:`load_state`.
    """
    optional: list[str] = []
    if layouts.is_released(state):
        state, optional = from_released(model, state)
    return load_state(model, state, optional=optional,
                      grid=grid_of(state, record, 'backbone.'))


def load_encoder_into(module: nn.Module, checkpoint: str,
                      encoder: str = 'online') -> KeyReport:
    """Load a pre-trained encoder into a backbone, every key or nothing.

    The log names the kind of checkpoint, unused parts and new parts. Positions
    of another grid are resampled, and the patch embedding of an encoder of
    colour images is inflated to the backbone's channels. A final norm and a
    hybrid encoder's fusion layers are dropped if the backbone has none.

    Args:
        module (nn.Module): A backbone with ``VisionTransformer``'s names,
            ``ViTSAM``'s or ``ConvViT``'s.
        checkpoint (str): The file, see :func:`find_encoder`.
        encoder (str): 'online' or 'target'. Defaults to 'online'.

    Returns:
        KeyReport: Matched keys.

    Raises:
        CheckpointError: If the file cannot be read or contains no encoder; if
            width, depth, patch size or number of heads differ; if channels
            differ and the encoder does not have three; or if one encoder is a
            plain ViT and the other a hybrid.
    """
    fitted = fit_encoder(module, checkpoint, encoder)
    module.load_state_dict(fitted.state, strict=False)
    log_loaded(fitted.lines)
    return fitted.report


@WEIGHT_INITIALIZERS.register_module()
class PretrainedEncoder:
    """Initializer of this project's backbones for ``init_cfg``.

    Args:
        checkpoint (str): See :func:`load_encoder_into`; or 'random', for
            random weights.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        prefix (str, optional): Of mmengine's ``Pretrained``; not used.
        map_location (str, optional): Likewise.

    Raises:
        CheckpointError: If there are other settings.
    """

    def __init__(self, checkpoint: str = '', encoder: str = 'online',
                 prefix: Any = None, map_location: Any = None,
                 **unknown: Any) -> None:
        if unknown:
            raise CheckpointError(
                'init_cfg takes type, checkpoint, encoder, prefix and '
                f'map_location, but got {sorted(unknown)}')
        self.checkpoint, self.encoder = checkpoint, encoder

    def __call__(self, module: nn.Module) -> bool:
        """Load the encoder into a backbone.

        Returns:
            bool: Whether an encoder was loaded. If not, the backbone must be
            initialised.
        """
        if self.checkpoint == RANDOM:
            print_log(
                'The backbone starts from random weights; for a pre-trained '
                'start set model.backbone.init_cfg.checkpoint.',
                logger='current', level=logging.WARNING)
            return False
        load_encoder_into(module, self.checkpoint, self.encoder)
        return True


def load_pretraining_model(checkpoint: PathLike,
                           config: str | None = None
                           ) -> tuple[nn.Module, dict[str, Any]]:
    """Load the whole model of a pre-training checkpoint.

    Args:
        checkpoint (str | PathLike): A pre-training checkpoint of this
            project, or, with a config, a released CMAE.
        config (str, optional): Its config. Defaults to the config text in the
            checkpoint, which is parsed, not executed.

    Returns:
        tuple[nn.Module, dict[str, Any]]: The CMAE, in evaluation mode, on the
        CPU, and the recorded settings of its encoder, see
        :func:`~cmae_mm.checkpoints.encoder_config.encoder_record`.

    Raises:
        CheckpointError: If the file cannot be read, or contains no decoder or
            no config.
    """
    init_default_scope('mmpretrain')
    with prefix_errors(checkpoint):
        state, meta = read_checkpoint(checkpoint)
        record = read_encoder_record(meta)
        if not any('decoder' in name for name in state):
            raise CheckpointError(
                'it contains an encoder without pixel decoder; use a '
                'pre-training checkpoint')
        if config is not None:
            from ..config import load_config
            model = MODELS.build(model_of(load_config(config)))
        else:
            model = _build_recorded(state, meta)
        if not hasattr(getattr(model, 'neck', None), 'pixel_decoder'):
            raise CheckpointError(
                f'its config is of a {type(model).__name__}, and what is '
                'needed is a pre-training checkpoint, of a CMAE')
        _check_heads(model.backbone, record)
        read_encoder_record(encoder_record(model))  # of the config's own
        load_model(model, state, record=record)
    return model.eval(), record


def model_of(cfg: Any) -> dict[str, Any]:
    """Return the settings of a config's model, with its data preprocessor.

    Args:
        cfg (Config | dict[str, Any]): The config.

    Raises:
        CheckpointError: If it has no model.
    """
    if not isinstance(cfg.get('model'), dict):
        raise CheckpointError(
            'its config has no model; set another one (--config)')
    model = dict(cfg['model'])
    if model.get('data_preprocessor') is None:
        model['data_preprocessor'] = cfg.get('data_preprocessor')
    return model


def _build_recorded(state: StateDict, meta: dict[str, Any]) -> nn.Module:
    """Build the model from the config text in a checkpoint."""
    from ..config import walk
    from ..plain_config import check_types, parse_config
    if not isinstance(meta.get('cfg'), str):
        raise CheckpointError(
            'it does not contain its config; set it (--config)')
    try:
        cfg = check_types(model_of(parse_config(meta['cfg'])))
        for key, value in walk(cfg):
            if re.search(_DEPTHS, key) and not value < len(state):
                raise CheckpointError(
                    f'its config says {key}={value!r}, but it has fewer '
                    'weights')
        with torch.device('meta'):  # sizes are compared before memory is taken
            check_fit(MODELS.build(dict(cfg, data_preprocessor=None)), state)
        return MODELS.build(cfg)
    except CheckpointError:
        raise
    # Modules raise many kinds of errors for wrong settings.
    except Exception as error:
        raise CheckpointError(
            f'the model of its config cannot be built: {error}; name its '
            'config (--config)') from error
