"""Pre-trained encoders as the start of another network."""
import logging
import re
from typing import Any, Callable, Dict, NamedTuple, Optional

from mmengine.logging import print_log
from torch import nn

from . import names
from .convmae import from_convmae
from .errors import CheckpointError
from .families import check_family
from .files import StateDict, read_checkpoint
from .fitting import KeyReport, load_state

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


# What a backbone need not have.
_SPARE = {'ln1.': 'final norm', 'fusions.': 'fusion layers'}


class FoundEncoder(NamedTuple):
    """An encoder's parameters, and what was found to hold them."""

    state: StateDict
    kind: str


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

    prefix = 'backbone.'
    if holds('target_backbone.', 'pixel_decoder.'):
        kind, state = RELEASED, names.from_cmae(state)
    elif holds('neck.pixel_decoder.'):
        kind = PRETRAINING
    elif holds('backbone.') and holds('head.', 'neck.'):
        kind = 'a fine-tuned model'
    elif holds('backbone.'):
        kind = 'an exported backbone'
    elif holds('blocks.'):
        kind, prefix = FOREIGN_ENCODER, ''
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
    return FoundEncoder(
        {
            k.removeprefix(prefix): v
            for k, v in state.items() if k.startswith(prefix)
        }, kind)


def load_encoder_into(module: nn.Module,
                      checkpoint: str,
                      encoder: str = 'online',
                      adapt: Optional[Callable[[StateDict],
                                               StateDict]] = None,
                      new: Optional[str] = None) -> KeyReport:
    """Load a pre-trained encoder into a backbone, every key or nothing.

    The log says what was taken and that all keys matched. Positions of
    another grid are resampled. A final norm that the backbone has no place
    for is left out, as where pooled features have a norm of their own, and so
    are a hybrid encoder's fusion layers.

    Args:
        module (nn.Module): A backbone with ``VisionTransformer``'s names, or
            ``ConvViT``'s.
        checkpoint (str): The file, see :func:`find_encoder`.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        adapt (Callable, optional): Function that renames the encoder for other
            backbones. Defaults to None.
        new (str, optional): Regular expression of the names of what no
            encoder has and the backbone learns anew. Defaults to None.

    Returns:
        KeyReport: What matched.

    Raises:
        CheckpointError: If the file cannot be read, holds no encoder, or is
            of another width, depth or patch size, or a plain ViT where a
            hybrid is needed or the reverse.
    """
    if not checkpoint:
        raise CheckpointError(
            'no checkpoint was given: set model.backbone.init_cfg.checkpoint '
            f'to a file, or to {RANDOM!r} to start from random weights')
    try:
        state, kind = find_encoder(read_checkpoint(checkpoint).state, encoder)
        expected = module.state_dict()
        check_family(state, expected)
        if adapt is not None:
            state = adapt(state)
        left_out = [
            k for k in state
            if k.startswith(tuple(_SPARE)) and k not in expected
        ]
        state = {k: v for k, v in state.items() if k not in left_out}
        made_new = [k for k in expected if new and re.search(new, k)
                    and k not in state]
        report = load_state(
            module, state, optional=made_new,
            advice="the model must have the encoder's width, depth and "
            'patch size', most_listed=10)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    lines = [f'{checkpoint} is {kind}; its {encoder} encoder was loaded, every'
             f' key matched: {report}']
    spared = [what for prefix, what in _SPARE.items()
              if any(k.startswith(prefix) for k in left_out)]
    if spared:
        lines.append(f'left out: its {" and its ".join(spared)}')
    if made_new:
        lines.append(f'new, not from the checkpoint: {", ".join(made_new)}')
    print_log('\n'.join(lines), logger='current')
    return report


def pretrained_cfg(init_cfg: Any) -> Optional[Dict[str, Any]]:
    """Give the arguments of :func:`load_encoder_into` that an init_cfg holds.

    Args:
        init_cfg (dict | list | None): ``init_cfg`` of a module.

    Returns:
        dict | None: ``checkpoint`` and, where given, ``encoder``, of
        ``dict(type='Pretrained', ...)``; None of any other, and where the
        word 'random' stands for the checkpoint, which the log then says.
    """
    if not isinstance(init_cfg, dict) or init_cfg['type'] != 'Pretrained':
        return None
    # What follows from the file itself need not be told, but may.
    known = {'type', 'checkpoint', 'encoder', 'prefix', 'map_location'}
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
    if 'encoder' in init_cfg:
        given['encoder'] = init_cfg['encoder']
    return given
