"""Pre-trained encoders as the start of another network."""
import logging
import re
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from mmengine.logging import print_log
from torch import nn

from . import names
from .channels import inflate_to
from .convmae import from_convmae
from .encoder_facts import read_encoder_facts
from .errors import CheckpointError
from .families import check_family
from .files import Checkpoint, StateDict, read_checkpoint
from .fitting import KeyReport, check_fit, describe_sizes
from .foreign import make_plain

_TARGET = 'target.encoder.'
_ALLOWED = ('a CMAE or MAE pre-training checkpoint of this project, a backbone'
            ' exported for mmpretrain, a fine-tuned classifier, a released '
            "CMAE checkpoint, an MAE encoder under FAIR's or timm's names, or "
            'a ConvMAE checkpoint')


# In the place of a checkpoint.
RANDOM = 'random'
# Kinds of checkpoints that hold more than an encoder.
RELEASED = 'a released CMAE checkpoint'
PRETRAINING = 'a pre-training checkpoint'
FOREIGN_ENCODER = 'an MAE or timm encoder'
CONVMAE = 'a ConvMAE encoder'
OTHER_METHOD = "a pre-training checkpoint of another method's"
# What only the checkpoints of mmpretrain's other methods hold: SimMIM's, and
# the momentum encoders of MoCo v3 and BYOL.
_OTHERS = ('neck.decoder.', 'momentum_encoder.', 'target_net.')
# Stands for masked patches, in encoders that take all of them.
_MASK_TOKEN = 'mask_token'
# What a backbone need not have.
_SPARE = {'ln1.': 'final norm', 'fusions.': 'fusion layers'}


class FoundEncoder(NamedTuple):
    """An encoder's parameters, what held them, and what was done to them."""

    state: StateDict
    kind: str
    left_out: Tuple[str, ...] = ()
    lines: Tuple[str, ...] = ()


class FittedEncoder(NamedTuple):
    """An encoder that fits a backbone, and what is to be said about it."""

    state: StateDict
    report: KeyReport
    lines: List[str]


def find_encoder(state: StateDict,
                 encoder: str = 'online') -> FoundEncoder:
    """Find the encoder in a checkpoint by the names of its parameters.

    Args:
        state (StateDict): The checkpoint's tensors.
        encoder (str): 'online', or 'target' where there are both. Defaults to
            'online'.

    Returns:
        FoundEncoder: The encoder under mmpretrain's names, without prefix.

    Raises:
        CheckpointError: If there is none, or not the one asked for.
    """
    if encoder not in ('online', 'target'):
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")

    def holds(*prefixes: str) -> bool:
        return any(k.startswith(prefixes) for k in state)

    prefix, given = 'backbone.', state
    lines: Sequence[str] = ()
    if holds('target_backbone.', 'pixel_decoder.'):
        kind, state = RELEASED, names.from_cmae(state)
    elif holds('neck.pixel_decoder.'):
        kind = PRETRAINING
    elif holds('backbone.') and holds(*_OTHERS):
        kind = OTHER_METHOD
    elif holds('backbone.') and holds('head.', 'neck.'):
        kind = 'a fine-tuned model'
    elif holds('backbone.'):
        kind = 'an exported backbone'
    elif holds('blocks.'):
        kind, prefix = FOREIGN_ENCODER, ''
        state, lines = make_plain(state)
        state = names.from_mae(state)
    elif holds('blocks1.') and holds('blocks3.'):
        kind, prefix = CONVMAE, ''
        state = from_convmae(state)
    elif holds('layers.') and 'pos_embed' in state:
        kind, prefix = 'a bare encoder', ''
    else:
        some = ', '.join(sorted(state)[:3])
        raise CheckpointError(
            f'no encoder was found in it (its first keys: {some}); needed is '
            f'{_ALLOWED}')
    if encoder == 'target':
        prefix = _TARGET
        if not any(k.startswith(prefix) for k in state):
            raise CheckpointError(
                f'it is {kind}, which has no target encoder; take the online '
                'one')
    found = {
        k.removeprefix(prefix): v
        for k, v in state.items() if k.startswith(prefix)
    }
    if kind == OTHER_METHOD and found.pop(_MASK_TOKEN, None) is not None:
        lines = [*lines, 'left out: its mask token']
    return FoundEncoder(found, kind, _other_parts(given, kind), tuple(lines))


def _other_parts(state: StateDict, kind: str) -> Tuple[str, ...]:
    """Name what a checkpoint holds beside its encoders."""
    if kind == 'a bare encoder':
        return ()
    foreign = kind in (FOREIGN_ENCODER, CONVMAE)
    parts = {
        'decoder' if k.startswith('decoder_') else k.split('.')[0]
        for k in state
        if (k.startswith(names.NO_ENCODER) if foreign else
            not k.startswith(('backbone.', 'target', 'data_preprocessor')))
    }
    return tuple(sorted(parts))


def fit_encoder(module: nn.Module,
                checkpoint: str,
                encoder: str = 'online',
                adapt: Optional[Callable[[StateDict], StateDict]] = None,
                new: Optional[str] = None,
                adapt_channels: bool = False) -> FittedEncoder:
    """Make a pre-trained encoder fit a backbone, without loading it.

    Its arguments are those of :func:`load_encoder_into`.

    Returns:
        FittedEncoder: What fits, all of it, and what is to be said.

    Raises:
        CheckpointError: See :func:`load_encoder_into`.
    """
    if not checkpoint:
        raise CheckpointError(
            'no checkpoint was given: set model.backbone.init_cfg.checkpoint '
            f'to a file, or to {RANDOM!r} to start from random weights')
    try:
        content = read_checkpoint(checkpoint)
        found = find_encoder(content.state, encoder)
        expected = module.state_dict()
        check_family(found.state, expected)
        state = found.state if adapt is None else adapt(found.state)
        spared = [
            k for k in state
            if k.startswith(tuple(_SPARE)) and k not in expected
        ]
        state = {k: v for k, v in state.items() if k not in spared}
        _check_sizes(state, expected)
        _check_heads(module, content)
        state, inflated = inflate_to(state, expected, adapt_channels)
        made_new = [k for k in expected if new and re.search(new, k)
                    and k not in state]
        fitting = check_fit(
            module, state, optional=made_new,
            advice="the model must have the encoder's width, depth and "
            'patch size', most_listed=10)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    lines = [f'{checkpoint} is {found.kind}; its {encoder} encoder was loaded,'
             f' every key matched: {fitting.report}', *found.lines, *inflated]
    left_out = [what for prefix, what in _SPARE.items()
                if any(k.startswith(prefix) for k in spared)]
    left_out += found.left_out
    if left_out:
        lines.append(f'left out: its {", ".join(left_out)}')
    if made_new:
        lines.append(f'new, not from the checkpoint: {", ".join(made_new)}')
    return FittedEncoder(fitting.state, fitting.report, lines)


def _check_sizes(state: StateDict, expected: StateDict) -> None:
    """Check width, depth and patch size."""
    sizes = [describe_sizes(s, '') for s in (state, expected)]
    if sizes[0] != sizes[1] and '' not in sizes:
        raise CheckpointError(
            f"its encoder is {sizes[0]}, the model's {sizes[1]}; choose the "
            'model (backbone.arch, backbone.patch_size; --model of `cmae '
            'pretrain`) of the same width, depth and patch size')


def _check_heads(module: nn.Module, content: Checkpoint) -> None:
    """Check the number of heads, which no tensor's shape tells."""
    noted = read_encoder_facts(content.meta).get('num_heads')
    arch = getattr(module, 'arch_settings', None)
    heads = arch.get('num_heads') if isinstance(arch, dict) else None
    if None not in (noted, heads) and noted != heads:
        raise CheckpointError(
            f'its encoder has {noted} attention heads, the model '
            f"{heads}; set num_heads of backbone.arch to the encoder's")


def load_encoder_into(module: nn.Module,
                      checkpoint: str,
                      encoder: str = 'online',
                      adapt: Optional[Callable[[StateDict],
                                               StateDict]] = None,
                      new: Optional[str] = None,
                      adapt_channels: bool = False) -> KeyReport:
    """Load a pre-trained encoder into a backbone, every key or nothing.

    The log says what was taken, that all keys matched, what was left out and
    what is new. Positions of another grid are resampled, and the patch
    embedding of an encoder of colour images is inflated to the backbone's
    channels. A final norm that the backbone has no place for is left out, as
    where pooled features have a norm of their own, and so are a hybrid
    encoder's fusion layers.

    Args:
        module (nn.Module): A backbone with ``VisionTransformer``'s names, or
            ``ConvViT``'s.
        checkpoint (str): The file, see :func:`find_encoder`.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        adapt (Callable, optional): Function that renames the encoder for other
            backbones. Defaults to None.
        new (str, optional): Regular expression of the names of what no
            encoder has and the backbone learns anew. Defaults to None.
        adapt_channels (bool): Whether the patch embedding of an encoder of
            other channels than three is made to fit, too. Defaults to False.

    Returns:
        KeyReport: What matched.

    Raises:
        CheckpointError: If the file cannot be read, holds no encoder, or is
            of another width, depth, patch size, number of heads, or, but for
            three, of channels, or a plain ViT where a hybrid is needed or
            the reverse.
    """
    fitted = fit_encoder(
        module, checkpoint, encoder, adapt, new, adapt_channels)
    module.load_state_dict(fitted.state, strict=False)
    print_log('\n'.join(fitted.lines), logger='current')
    return fitted.report


def is_pretrained(init_cfg: Any) -> bool:
    """Say whether an init_cfg names a checkpoint."""
    return isinstance(init_cfg, dict) and init_cfg['type'] == 'Pretrained'


def pretrained_cfg(init_cfg: Any) -> Optional[Dict[str, Any]]:
    """Give the arguments of :func:`load_encoder_into` that an init_cfg holds.

    Args:
        init_cfg (dict | list | None): ``init_cfg`` of a module.

    Returns:
        dict | None: ``checkpoint`` and, where given, ``encoder`` and
        ``adapt_channels``, of ``dict(type='Pretrained', ...)``; None of any
        other, and where the word 'random' stands for the checkpoint, which
        the log then says.
    """
    if not is_pretrained(init_cfg):
        return None
    # What follows from the file itself need not be told, but may.
    known = {'type', 'checkpoint', 'encoder', 'adapt_channels', 'prefix',
             'map_location'}
    if set(init_cfg) - known:
        raise CheckpointError(
            f'init_cfg takes {sorted(known)}, but got {sorted(init_cfg)}')
    if init_cfg.get('checkpoint') == RANDOM:
        print_log(
            'The backbone starts from random weights; for a pre-trained start '
            'set model.backbone.init_cfg.checkpoint.',
            logger='current',
            level=logging.WARNING)
        return None
    given = dict(checkpoint=init_cfg.get('checkpoint') or '')
    for name in ('encoder', 'adapt_channels'):
        if name in init_cfg:
            given[name] = init_cfg[name]
    return given
