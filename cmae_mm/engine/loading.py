"""Checks of a checkpoint before a run loads it."""
from collections import OrderedDict
from typing import Any, List, NamedTuple, Tuple

from torch import Tensor, nn

from ..checkpoints import (
    CheckpointError,
    find_encoder,
    read_encoder_facts,
)
from ..checkpoints.layouts import PRETRAINING, RELEASED
from ..checkpoints.load import from_released
from ..checkpoints.read import StateDict, unwrap
from ..checkpoints.state_dict import QUEUE, compare, grid_of, read_sizes
from ..models import CMAE

RESUME, START, TEST = 'resume', 'load_from', 'test'
# CMAE modules that an MAE checkpoint or an encoder does not contain. A
# checkpoint has all keys of a module or none.
_PARTS = ('neck.pixel_decoder.', 'neck.feature_decoder.', 'neck.projector.',
          'head.', 'target.')
_LISTED = 10
_ADVICE = {
    RESUME: 'a run can only be resumed with the same model; to start a new '
    'run from these weights, use load_from',
    START: 'set load_partial=True to load the keys that fit, or load the '
    'encoder alone by model.backbone.init_cfg=dict(type="Pretrained", '
    'checkpoint=...)',
    TEST: 'use the config that the checkpoint was trained with'
}


class Loadable(NamedTuple):
    """A state dict that fits a model, and lines for the log."""

    state: 'OrderedDict[str, Tensor]'
    lines: List[str]
    copy_target: bool


def check_training_state(checkpoint: Any) -> None:
    """Check that a run can be resumed from a checkpoint.

    Args:
        checkpoint (Any): Content of a file.

    Raises:
        CheckpointError: If it contains weights only.
    """
    content = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [k for k in ('meta', 'message_hub', 'optimizer')
               if not isinstance(content.get(k), dict)]
    if 'meta' not in missing:
        missing += [f'meta.{k}' for k in ('epoch', 'iter')
                    if k not in content['meta']]
    if missing:
        raise CheckpointError(
            f'it contains no training state ({", ".join(missing)} missing); '
            'to start a new run from its weights, use load_from')


def fit(model: nn.Module, checkpoint: Any, purpose: str,
        allow_partial: bool = False) -> Loadable:
    """Adapt a checkpoint's state dict to a model, before loading.

    Args:
        model (nn.Module): A model without its distributed wrapper.
        checkpoint (Any): Content of a file.
        purpose (str): 'resume', 'load_from' or 'test'. A CMAE may start from
            an encoder or an MAE; otherwise all keys must fit.
        allow_partial (bool): Whether 'load_from' may load only the keys that
            fit. Defaults to False.

    Returns:
        Loadable: State dict with every name of the model.

    Raises:
        CheckpointError: If it does not fit.
    """
    state, meta = unwrap(checkpoint)
    grid = grid_of(state, read_encoder_facts(meta), 'backbone.')
    metadata = getattr(state, '_metadata', None)
    optional: List[str] = []
    lines: List[str] = []
    starts_cmae = isinstance(model, CMAE) and purpose == START
    if starts_cmae:
        state, optional, lines = _start_of_cmae(model, state)
    expected = model.state_dict()
    state = _fit_queue(state, expected, purpose, lines)
    # As in mmengine: early versions of torch had no BatchNorm counts.
    optional += [k for k in expected if k.endswith('num_batches_tracked')]
    fitting, report = compare(
        model, state, optional, inflate=starts_cmae, grid=grid)
    if purpose == RESUME and report.resampled:
        raise CheckpointError(
            f'it is of another image size ({report.resampled[0]}); '
            f'{_ADVICE[RESUME]}')
    if not report.fits:
        if not (allow_partial and purpose == START and fitting):
            sizes = [read_sizes(s, 'backbone.') for s in (state, expected)]
            differ = '' if sizes[0] == sizes[1] or None in sizes else (
                f"its encoder is {sizes[0]}, the model's {sizes[1]}; ")
            raise CheckpointError(
                f'it does not fit the model: {differ}{_ADVICE[purpose]}\n'
                f'{report.listed(_LISTED)}')
        lines.append('load_partial=True: only the keys that fit were loaded; '
                     f'{report.listed(_LISTED)}')
    lines += report.inflated + report.resampled
    complete = OrderedDict({**expected, **fitting})
    if metadata is not None:
        complete._metadata = metadata  # type: ignore[attr-defined]
    new_target = (starts_cmae and model.target is not None
                  and not any(k.startswith('target.') for k in state))
    if new_target:
        lines.append('the target starts as a copy of the loaded online branch')
    return Loadable(complete, lines, new_target)


def _fit_queue(state: StateDict, expected: StateDict, purpose: str,
               lines: List[str]) -> StateDict:
    """Drop a queue of negatives with another length than the model's."""
    lengths = [s[QUEUE].shape[:1].numel() if QUEUE in s else 0
               for s in (state, expected)]
    if lengths[0] == lengths[1]:
        return state
    what = (f'its queue of negatives has length {lengths[0]}, the model\'s '
            f'{lengths[1]} (head.contrastive.queue_length)')
    if purpose == RESUME:
        raise CheckpointError(f'{what}; {_ADVICE[RESUME]}')
    if purpose == START and lengths[1]:
        lines.append(f'{what}: it starts empty')
    return OrderedDict(
        (k, v) for k, v in state.items() if not k.startswith(QUEUE))


def _start_of_cmae(model: nn.Module, state: StateDict
                   ) -> Tuple[StateDict, List[str], List[str]]:
    """Return state dict, optional names and log lines to initialise a CMAE."""
    found, kind, lines, *_ = find_encoder(state)
    if kind == RELEASED:
        state, optional = from_released(model, state)
        return state, optional, [f'it is {kind}']
    if kind != PRETRAINING:
        state = {f'backbone.{k}': v for k, v in found.items()}
    fresh = tuple(part for part in _PARTS
                  if not any(k.startswith(part) for k in state))
    optional = [k for k in model.state_dict() if fresh and k.startswith(fresh)]
    if kind == PRETRAINING and not optional:
        return state, [], []
    made = sorted({part for part in fresh
                   if any(k.startswith(part) for k in optional)})
    return state, optional, [
        f'it is {kind}; new, not from it: '
        f'{", ".join(p.rstrip(".") for p in made) or "nothing"}', *lines]
