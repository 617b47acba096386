"""Whether a state dict fits a model, and loading it, all of it or nothing."""
import copy
import re
import warnings
from typing import List, NamedTuple, Optional, Sequence

import torch
from torch import nn

from .errors import CheckpointError
from .families import check_family, is_hybrid
from .files import StateDict
from .positions import resample_to

KINDS = ('missing', 'unexpected', 'misshapen')


class KeyReport(NamedTuple):
    """How a state dict fits a model."""

    matched: List[str]
    missing: List[str]
    unexpected: List[str]
    misshapen: List[str]
    resampled: List[str]

    @property
    def fits(self) -> bool:
        """Whether every key matched."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        return self.listed()

    def listed(self, most: Optional[int] = None) -> str:
        """List the keys, a line each.

        Args:
            most (int, optional): Number of keys of each kind that are listed.
                Defaults to all.

        Returns:
            str: Counts, and all keys except those that matched.
        """
        lines = [f'{len(self.matched)} keys matched']
        for kind in ('resampled', *KINDS):
            keys = getattr(self, kind)
            if keys:
                lines.append(f'{len(keys)} {kind}:')
                lines += [f'    {key}' for key in keys[:most]]
                if most is not None and len(keys) > most:
                    lines.append(f'    and {len(keys) - most} more')
        return '\n'.join(lines)


class Fitting(NamedTuple):
    """What of a state dict fits a model, and the report on all of it."""

    state: StateDict
    report: KeyReport


# Not in any foreign checkpoint, and right at its start.
_STEPS = 'target.steps'
# The negatives of a ``CMAEQueueHead``: no weights, and of its training alone.
QUEUE = 'head.contrastive.queue'
_ALLOW = 'if this is meant, allow it (--allow-partial)'


def compare(model: nn.Module,
            state: StateDict,
            optional: Sequence[str] = ()) -> Fitting:
    """Compare a state dict with a model's, without loading it.

    Args:
        model (nn.Module): The model.
        state (StateDict): A state dict under the model's names. A queue of
            negatives need not be there, or may be too much.
        optional (Sequence[str]): Names that need not be there, beside the
            target's count of steps. Defaults to none.

    Returns:
        Fitting: What fits, with positions of another grid resampled, and the
        report.

    Raises:
        CheckpointError: If one encoder is a plain ViT and the other a hybrid.
    """
    expected = model.state_dict()
    check_family(state, expected)
    state, resampled = resample_to(state, expected)
    misshapen = [
        f'{k}: {tuple(v.shape)} in the checkpoint, {tuple(expected[k].shape)} '
        'in the model' for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    fitting = {
        k: v
        for k, v in state.items()
        if k in expected and v.shape == expected[k].shape
    }
    return Fitting(
        fitting,
        KeyReport(
            matched=sorted(fitting),
            missing=sorted(k for k in expected
                           if k not in state and k not in (_STEPS, *optional)
                           and not k.startswith(QUEUE)),
            unexpected=sorted(k for k in state if k not in expected
                              and not k.startswith(QUEUE)),
            misshapen=sorted(misshapen),
            resampled=resampled))


def load_state(model: nn.Module,
               state: StateDict,
               allow_partial: bool = False,
               optional: Sequence[str] = (),
               advice: str = _ALLOW,
               most_listed: Optional[int] = None) -> KeyReport:
    """Load a state dict into a model, all of it or nothing.

    Position embeddings of another grid are resampled.

    Args:
        model (nn.Module): The model.
        state (StateDict): A state dict under the model's names.
        allow_partial (bool): Whether to load what fits although some does not.
            Defaults to False.
        optional (Sequence[str]): Names that need not be there, beside the
            target's count of steps. Defaults to none.
        advice (str): What to do about a misfit, for the error. Defaults to
            allowing it by ``--allow-partial``.
        most_listed (int, optional): Number of keys of each kind that the error
            lists. Defaults to all.

    Returns:
        KeyReport: What matched and what did not.

    Raises:
        CheckpointError: If keys are missing, unexpected or misshapen, which
            it lists, and ``allow_partial`` is not set; or if nothing fits.
    """
    fitting, report = check_fit(model, state, allow_partial, optional,
                                advice, most_listed)
    model.load_state_dict(fitting, strict=False)
    return report


def check_fit(model: nn.Module,
              state: StateDict,
              allow_partial: bool = False,
              optional: Sequence[str] = (),
              advice: str = _ALLOW,
              most_listed: Optional[int] = None) -> Fitting:
    """Check that a state dict fits a model, without loading it.

    Its arguments are those of :func:`load_state`.

    Returns:
        Fitting: What fits, and the report.

    Raises:
        CheckpointError: See :func:`load_state`.
    """
    fitting, report = compare(model, state, optional)
    if not fitting or not (report.fits or allow_partial):
        what = ('nothing in the checkpoint fits' if not fitting else
                'the checkpoint does not fit')
        if not fitting and advice == _ALLOW:
            advice = 'is it for another model?'
        raise CheckpointError(f'{what} the model:\n'
                              f'{report.listed(most_listed)}\n{advice}')
    return Fitting(fitting, report)


def fits_once_converted(model: nn.Module, state: StateDict) -> bool:
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
    missing = [k for k in keys.missing_keys if k not in state and k != _STEPS
               and not k.endswith('num_batches_tracked')]
    return not missing and not keys.unexpected_keys


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    bare = tensor.detach().to('meta')
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(bare, requires_grad=tensor.requires_grad)
    return bare


def describe_sizes(state: StateDict, prefix: str = 'backbone.') -> str:
    """Say how wide and deep the transformer in a state dict is.

    Args:
        state (StateDict): A state dict under mmpretrain's names.
        prefix (str): What the encoder's names begin with. Defaults to
            'backbone.'.

    Returns:
        str: A description in words, empty if there is none.
    """
    positions = state.get(f'{prefix}pos_embed')
    pattern = rf'{re.escape(prefix)}layers\.(\d+)\.'
    layers = [int(found[1])
              for found in (re.match(pattern, k) for k in state) if found]
    if positions is None or not layers:
        return ''
    if is_hybrid(state):
        return _describe_stages(state, prefix)
    sizes = f'{positions.shape[-1]} wide and {max(layers) + 1} layers deep'
    patches = state.get(f'{prefix}patch_embed.projection.weight')
    if patches is not None:
        sizes += f' with patches of {patches.shape[-1]} pixels'
    return sizes


def _describe_stages(state: StateDict, prefix: str) -> str:
    """Say how wide and deep each stage of a hybrid encoder is."""
    widths, depths, patches = [], [], []
    for stage, blocks in (('conv_stages.0.', 'conv_stages.0.blocks'),
                          ('conv_stages.1.', 'conv_stages.1.blocks'),
                          ('', 'layers')):
        weight = state.get(f'{prefix}{stage}patch_embed.projection.weight')
        if weight is None:
            return ''
        widths.append(weight.shape[0])
        patches.append(weight.shape[-1])
        pattern = rf'{re.escape(prefix + blocks)}\.(\d+)\.'
        found = (re.match(pattern, k) for k in state)
        depths.append(1 + max((int(m[1]) for m in found if m), default=-1))
    words = [', '.join(map(str, sizes)) for sizes in (widths, depths, patches)]
    return (f'{words[0]} wide and {words[1]} layers deep in its stages, with '
            f'patches of {words[2]}')
