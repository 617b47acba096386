"""What a run may load: a checkpoint that fits, or an encoder to start from."""
import copy
import re
import warnings
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointError, find_encoder
from ..checkpoints.layouts import PRETRAINING, RELEASED
from ..checkpoints.load import from_released
from ..checkpoints.read import StateDict
from ..checkpoints.state_dict import QUEUE, STEPS, compare, read_sizes
from ..models import CMAE
from ..models.utils import is_sharded

RESUME, START, TEST = 'resume', 'load_from', 'test'
# What an MAE lacks of a CMAE, and a start from it makes new; each is there
# in whole or not at all.
_PARTS = ('neck.pixel_decoder.', 'neck.feature_decoder.', 'neck.projector.',
          'head.', 'target.')
_LISTED = 10
_ADVICE = {
    RESUME: 'a run is resumed with the model it was started with; to start a '
    'new run from these weights use load_from',
    START: 'set load_partial=True to load what fits all the same, or take the'
    ' encoder alone by model.backbone.init_cfg=dict(type="Pretrained", '
    'checkpoint=...)',
    TEST: 'test with the config that it was trained with'
}


class Loadable(NamedTuple):
    """A state dict that a model takes, and what is to be said about it."""

    state: 'OrderedDict[str, Tensor]'
    lines: List[str]
    copy_target: bool


def check_training_state(checkpoint: Any) -> None:
    """Check that a run can go on from a checkpoint.

    Args:
        checkpoint (Any): Content of a file.

    Raises:
        CheckpointError: If it holds weights alone.
    """
    needed = ('meta', 'message_hub', 'optimizer')
    content = checkpoint if isinstance(checkpoint, dict) else {}
    lacking = [k for k in needed if not isinstance(content.get(k), dict)]
    lacking += [f'meta.{k}' for k in ('epoch', 'iter')
                if 'meta' not in lacking and k not in content['meta']]
    if lacking:
        raise CheckpointError(
            f'it holds no training state ({", ".join(lacking)} missing), so '
            'no run can be resumed from it; to start a new run from its '
            'weights use load_from')


def fit(model: nn.Module,
        checkpoint: Any,
        purpose: str,
        revise_keys: Sequence[Tuple[str, str]] = ((r'^module\.', ''), ),
        allow_partial: bool = False) -> Loadable:
    """Make a checkpoint's state dict fit a model, before it is loaded.

    Args:
        model (nn.Module): A model without its distributed wrapper.
        checkpoint (Any): Content of a file.
        purpose (str): 'resume', 'load_from' or 'test'. A CMAE may start from
            an encoder or an MAE; all else must fit.
        revise_keys (Sequence[Tuple[str, str]]): Patterns that are replaced in
            names. Defaults to taking off ``module.``.
        allow_partial (bool): Start with what fits. Defaults to False.

    Returns:
        Loadable: With every name of the model in its state.

    Raises:
        CheckpointError: If it does not fit.
    """
    state = _state_dict(checkpoint, revise_keys)
    metadata = getattr(state, '_metadata', None)
    optional: List[str] = []
    lines: List[str] = []
    is_cmae = isinstance(model, CMAE)
    starts = is_cmae and purpose == START
    if starts:
        state, optional, lines = _start_of_cmae(model, state)
    # As mmengine does it: BatchNorm counts came late to torch.
    expected = model.state_dict()
    state = _fit_queue(state, expected, purpose, lines)
    optional += [k for k in expected if k.endswith('num_batches_tracked')]
    fitting, report = compare(model, state, optional, inflate=starts)
    if purpose == RESUME and report.resampled:
        raise CheckpointError(
            f'it is of another image size ({report.resampled[0]}); '
            f'{_ADVICE[RESUME]}')
    complete = OrderedDict({**expected, **fitting})
    if not report.fits:
        sizes = [read_sizes(s, 'backbone.') for s in (state, expected)]
        alike = sizes[0] == sizes[1] or None in sizes
        if (alike and not is_sharded(model)
                and _fits_once_converted(model, state)):
            complete = OrderedDict(state)
        elif allow_partial and purpose == START and fitting:
            lines.append('load_partial=True: only what fits was loaded; '
                         f'{report.listed(_LISTED)}')
        else:
            differ = '' if alike else (
                f"its encoder is {sizes[0]}, the model's {sizes[1]}; ")
            raise CheckpointError(
                f'it does not fit the model: {differ}{_ADVICE[purpose]}\n'
                f'{report.listed(_LISTED)}')
    lines += report.inflated + report.resampled
    if metadata is not None:
        complete._metadata = metadata
    new_target = (
        is_cmae and purpose == START and model.target is not None
        and not any(k.startswith('target.') for k in state))
    if new_target:
        lines.append('the target starts as a copy of the loaded online branch')
    return Loadable(complete, lines, new_target)


def _fit_queue(state: StateDict, expected: StateDict, purpose: str,
               lines: List[str]) -> StateDict:
    """Leave a queue of negatives out that is not the model's."""
    lengths = [s[QUEUE].shape[:1].numel() if QUEUE in s else 0
               for s in (state, expected)]
    if lengths[0] == lengths[1]:
        return state
    what = (f'its queue of negatives holds {lengths[0]}, the model\'s '
            f'{lengths[1]} (head.contrastive.queue_length)')
    if purpose == RESUME:
        raise CheckpointError(f'{what}; {_ADVICE[RESUME]}')
    if purpose == START and lengths[1]:
        lines.append(f'{what}: it starts empty')
    return OrderedDict(
        (k, v) for k, v in state.items() if not k.startswith(QUEUE))


def _state_dict(checkpoint: Any,
                revise_keys: Sequence[Tuple[str, str]]) -> StateDict:
    content = checkpoint
    for wrapper in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(
                content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(
            f'it holds a {type(content).__name__}, not a state dict')
    state: Dict[str, Tensor] = OrderedDict()
    for name, value in content.items():
        if isinstance(value, Tensor):
            for pattern, new in revise_keys:
                name = re.sub(pattern, new, name)
            state[name] = value
    if not state:
        raise CheckpointError('it holds no tensors')
    if hasattr(content, '_metadata'):
        state._metadata = content._metadata
    return state


def _start_of_cmae(model: nn.Module, state: StateDict
                   ) -> Tuple[StateDict, List[str], List[str]]:
    """Give what a CMAE starts from: state, optional names, log lines."""
    found, kind, _, lines = find_encoder(state)
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


def _fits_once_converted(model: nn.Module, state: StateDict) -> bool:
    """Tell whether the model's own modules make an older state dict fit.

    Libraries rename and reshape parameters of their earlier versions while
    they load them. This tries it on a copy of the model without memory.

    Args:
        model (nn.Module): The model, which is not touched.
        state (StateDict): A state dict under the names of any version of the
            model.

    Returns:
        bool: Whether loading it leaves nothing out.
    """
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(t): _without_memory(t) for t in tensors}
    clone = copy.deepcopy(model, memo)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # nothing is copied: that is meant
        try:
            keys = clone.load_state_dict(copy.copy(state), strict=False)
        except RuntimeError:  # shapes
            return False
    # What is in the state was taken out by a module that makes it itself.
    missing = [k for k in keys.missing_keys if k not in state and k != STEPS
               and not k.endswith('num_batches_tracked')]
    return not missing and not keys.unexpected_keys


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    bare = tensor.detach().to('meta')
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(bare, requires_grad=tensor.requires_grad)
    return bare
