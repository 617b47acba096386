"""Whether a state dict fits a model, and what is done to make it fit."""
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .errors import CheckpointError
from .layouts import square_root
from .read import StateDict

# Not in any foreign checkpoint, and right at its start.
STEPS = 'target.steps'
# The negatives of a ``CMAEQueueHead``: no weights, and of its training alone.
QUEUE = 'head.contrastive.queue'
HYBRID = 'a hybrid encoder with convolution stages'
# Patterns of names, and the backbones that have them.
_FAMILIES = {
    HYBRID: (r'(^|\.)conv_stages\.\d',
             'CMAEConvViT, TransferConvViT or TransferConvViTDet'),
    'a plain vision transformer': (
        r'(^|\.)layers\.\d+\.attn\.',
        'CMAEViT, TransferViT or TransferViTDet'),
}
_COLOURS = 3


class KeyReport(NamedTuple):
    """How a state dict fits a model."""

    matched: List[str]
    missing: List[str]
    unexpected: List[str]
    misshapen: List[str]
    resampled: List[str]
    inflated: List[str] = []

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
        for kind in self._fields[:0:-1]:
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


class Sizes(NamedTuple):
    """Sizes of an encoder as its tensors have them, one a stage."""

    widths: List[int]
    depths: List[int]
    patches: List[int]

    def __str__(self) -> str:
        words = [', '.join(map(str, sizes)) for sizes in self]
        if len(self.widths) == 1:
            return (f'{words[0]} wide and {words[1]} layers deep with patches '
                    f'of {words[2]} pixels')
        return (f'{words[0]} wide and {words[1]} layers deep in its stages, '
                f'with patches of {words[2]}')


def read_sizes(state: StateDict, prefix: str = '') -> Optional[Sizes]:
    """Read the sizes of the encoder in a state dict.

    Args:
        state (StateDict): A state dict under our names.
        prefix (str): What the encoder's names begin with. Defaults to none.

    Returns:
        Sizes: Of each stage; None where there is no encoder.
    """
    stages = ['']
    if f'{prefix}conv_stages.0.patch_embed.projection.weight' in state:
        stages = ['conv_stages.0.', 'conv_stages.1.', '']
    sizes = Sizes([], [], [])
    for stage in stages:
        name = f'{prefix}{stage}patch_embed.projection.weight'
        blocks = f'{prefix}{stage}{"blocks" if stage else "layers"}'
        pattern = re.compile(rf'{re.escape(blocks)}\.(\d+)\.')
        numbers = {m[1] for m in map(pattern.match, state) if m}
        weight = state.get(name)
        if weight is None or weight.dim() != 4 or not numbers or (
                weight.numel() == 0):
            return None
        sizes.widths.append(weight.shape[0])
        sizes.depths.append(len(numbers))
        sizes.patches.append(weight.shape[-1])
    return sizes


def check_sizes(state: StateDict, expected: StateDict) -> None:
    """Check the width, depth and patch size of an encoder.

    Raises:
        CheckpointError: If they are not the model's.
    """
    theirs, ours = read_sizes(state), read_sizes(expected)
    if theirs and ours and theirs != ours:
        raise CheckpointError(
            f"its encoder is {theirs}, the model's {ours}; choose the "
            'model (backbone.arch, backbone.patch_size; --model of `cmae '
            'pretrain`) of the same width, depth and patch size')


def _family_of(state: StateDict) -> str:
    return next((family for family, (pattern, _) in _FAMILIES.items()
                 if any(re.search(pattern, k) for k in state)), '')


def is_hybrid(state: StateDict) -> bool:
    """Tell whether an encoder, or a model's, has convolution stages."""
    return _family_of(state) == HYBRID


def check_family(state: StateDict, expected: StateDict) -> None:
    """Check that both encoders are plain ones, or both hybrids.

    Raises:
        CheckpointError: If they are not.
    """
    theirs, ours = _family_of(state), _family_of(expected)
    if theirs and ours and theirs != ours:
        raise CheckpointError(
            f'it holds {theirs}, the model has {ours}, and neither starts '
            'from the other: take a config whose backbone is '
            f'{_FAMILIES[theirs][1]}, or a checkpoint of the other kind')


def _check_values(model: nn.Module, state: StateDict,
                  expected: StateDict) -> None:
    """Check that weights are finite floating-point numbers."""
    weights = {k for k, _ in model.named_parameters()}
    weights |= {k for k in expected
                if k.endswith(('running_mean', 'running_var'))}
    wrong: Dict[str, List[str]] = {}
    for name in state.keys() & expected.keys():
        value, wanted = state[name], expected[name]
        if value.is_floating_point() != wanted.is_floating_point():
            wrong.setdefault(f'of {value.dtype}', []).append(name)
        # A wider type may hold more than the model's.
        elif name in weights and not value.to(
                wanted.dtype).float().isfinite().all():
            wrong.setdefault('not finite', []).append(name)
    for what, names in wrong.items():
        raise CheckpointError(
            f'its weights cannot be used: {len(names)} of {len(state)} '
            f'tensors are {what}, among them {min(names)}')


def compare(model: nn.Module,
            state: StateDict,
            optional: Sequence[str] = (),
            inflate: bool = False) -> Fitting:
    """Compare a state dict with a model's, without loading it.

    Args:
        model (nn.Module): The model.
        state (StateDict): A state dict under the model's names. A queue of
            negatives need not be there, or may be too much.
        optional (Sequence[str]): Names that need not be there, beside the
            target's count of steps. Defaults to none.
        inflate (bool): Whether an encoder of colour images may start one of
            other channels. Defaults to False.

    Returns:
        Fitting: What fits, with positions of another grid resampled, and the
        report.

    Raises:
        CheckpointError: If one encoder is a plain ViT and the other a hybrid,
            weights are not finite or no floating-point numbers, or channels
            differ and cannot be inflated.
    """
    expected = model.state_dict()
    check_family(state, expected)
    _check_values(model, state, expected)
    state = dict(state)
    inflated = _inflate_to(state, expected) if inflate else []
    resampled = _resample_to(state, expected)
    misshapen = {k for k in state.keys() & expected.keys()
                 if state[k].shape != expected[k].shape}
    spare = (STEPS, *optional)
    report = KeyReport(
        matched=sorted((state.keys() & expected.keys()) - misshapen),
        missing=sorted(k for k in expected.keys() - state.keys()
                       if k not in spare and not k.startswith(QUEUE)),
        unexpected=sorted(k for k in state.keys() - expected.keys()
                          if not k.startswith(QUEUE)),
        misshapen=sorted(
            f'{k}: {tuple(state[k].shape)} in the checkpoint, '
            f'{tuple(expected[k].shape)} in the model' for k in misshapen),
        resampled=resampled,
        inflated=inflated)
    return Fitting({k: state[k] for k in report.matched}, report)


def check_fit(model: nn.Module,
              state: StateDict,
              allow_partial: bool = False,
              advice: str = 'if this is meant, allow it (--allow-partial)',
              most_listed: Optional[int] = None,
              **options: Any) -> Fitting:
    """Check that a state dict fits a model, without loading it.

    Its arguments are those of :func:`load_state`.

    Returns:
        Fitting: What fits, and the report.

    Raises:
        CheckpointError: See :func:`load_state`.
    """
    fitting = compare(model, state, **options)
    if fitting.state and (fitting.report.fits or allow_partial):
        return fitting
    what = ('the checkpoint does not fit' if fitting.state else
            'nothing in the checkpoint fits')
    raise CheckpointError(
        f'{what} the model:\n{fitting.report.listed(most_listed)}\n{advice}')


def load_state(model: nn.Module, state: StateDict,
               allow_partial: bool = False, **options: Any) -> KeyReport:
    """Load a state dict into a model, all of it or nothing.

    Position embeddings of another grid are resampled.

    Args:
        model (nn.Module): The model.
        state (StateDict): A state dict under the model's names.
        allow_partial (bool): Whether to load what fits although some does not.
            Defaults to False.
        **options: Those of :func:`compare`; ``advice``, what to do about a
            misfit, for the error; and ``most_listed``, how many keys of each
            kind that lists, by default all.

    Returns:
        KeyReport: What matched and what did not.

    Raises:
        CheckpointError: If keys are missing, unexpected or misshapen, which
            it lists, and ``allow_partial`` is not set; if nothing fits; or if
            weights cannot be used, see :func:`compare`.
    """
    fitting, report = check_fit(model, state, allow_partial, **options)
    model.load_state_dict(fitting, strict=False)
    return report


def inflate(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Make a patch embedding take another number of channels.

    Each channel gets the mean over the channels that there were, times their
    number over the new one: an image that has the same values, after
    normalisation, in all channels gives the same tokens as before.

    Args:
        weight (torch.Tensor): Weight of a convolution, (D, C, P, P).
        channels (int): The new number of channels.

    Returns:
        torch.Tensor: (D, channels, P, P).
    """
    shared = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return shared.repeat(1, channels, 1, 1)


def _inflate_to(state: StateDict, expected: StateDict) -> List[str]:
    """Inflate the patch embedding that takes the image, in place."""
    # The first in the alphabet: of a hybrid, conv_stages.0.
    name = min((k for k in expected if k.endswith(
        'patch_embed.projection.weight')), default='')
    if name not in state or state[name].dim() != 4:
        return []
    theirs, ours = state[name].shape, expected[name].shape
    if theirs[1] == ours[1] or theirs[:1] + theirs[2:] != ours[:1] + ours[2:]:
        return []
    if theirs[1] != _COLOURS:
        raise CheckpointError(
            f'its encoder is for images of {theirs[1]} channel(s), the model '
            f'for {ours[1]}: only an encoder of {_COLOURS} channels can start '
            'one of others')
    state[name] = inflate(state[name], ours[1])
    return [f'{name}: made for {ours[1]} channel(s) of the mean over '
            f'{theirs[1]}, times {theirs[1]}/{ours[1]}, so that an image '
            'alike in all channels gives what it gave']


def resample_pos_embed(pos_embed: torch.Tensor, grid: int,
                       num_prefix: int = 1) -> torch.Tensor:
    """Resample position embeddings to another square grid of patches.

    Bicubic with anti-aliasing, as timm does it. Prefix positions (the class
    token's) are kept. This is the one place where checkpoints are resampled.

    Args:
        pos_embed (torch.Tensor): Position embeddings, (1, prefix + L, D), L a
            square number.
        grid (int): Side of the new grid, in patches.
        num_prefix (int): Number of positions before those of the patches.
            Defaults to 1.

    Returns:
        torch.Tensor: Position embeddings, (1, prefix + grid * grid, D), of
        the same dtype.
    """
    side = square_root(pos_embed.shape[1] - num_prefix)
    if side == grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(
        patches, size=(grid, grid), mode='bicubic', antialias=True)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, patches.to(pos_embed.dtype)], dim=1)


def _resample_to(state: StateDict, expected: StateDict) -> List[str]:
    """Resample positions that fit a model but for their grid, in place."""
    lines = []
    for name in [k for k in state if k.endswith('pos_embed')]:
        value, wanted = state[name], expected.get(name)
        if wanted is None or value.dim() != wanted.dim() or (
                value.shape == wanted.shape or value.dim() not in (3, 4)
                or value.shape[::value.dim() - 1]
                != wanted.shape[::value.dim() - 1]):
            continue
        as_map = value.dim() == 4  # ViTSAM's, (1, H, W, D)
        lengths = [x.shape[1] * (x.shape[2] if as_map else 1)
                   for x in (value, wanted)]
        # With a class token's slot or without, both alike.
        for prefix in (0, ) if as_map else (1, 0):
            old, new = (square_root(n - prefix) for n in lengths)
            if old and new:
                tokens = value.flatten(1, 2) if as_map else value
                state[name] = resample_pos_embed(tokens, new, prefix).view(
                    wanted.shape)
                lines.append(f'{name}: {old}x{old} to {new}x{new}')
                break
    return lines
