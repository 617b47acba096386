"""Comparison of a state dict with a model, and adaptation to it."""
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..image_size import ImageSize, Pair, find_grid, to_pair
from . import CheckpointError
from .read import StateDict

# Missing in checkpoints of other projects; 0 is correct at the start.
STEPS = 'target.steps'


# Plain and hybrid encoders, and their backbones.
KINDS = ('a plain vision transformer',
         'a hybrid encoder with convolution stages')
_BACKBONES = ('CMAEViT, TransferViT or TransferViTDet',
              'CMAEConvViT, TransferConvViT or TransferConvViTDet')
_COLOURS = 3


class KeyReport(NamedTuple):
    """Result of comparing a state dict with a model."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    resampled: list[str]
    inflated: list[str] = []

    @property
    def fits(self) -> bool:
        """Whether every key matched."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        return self.listed()

    def listed(self, most: int | None = None) -> str:
        """List the keys, one per line.

        Args:
            most (int, optional): Largest number of listed keys of each kind.
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
    """The tensors of a state dict that fit a model, and the report."""

    state: StateDict
    report: KeyReport


class Sizes(NamedTuple):
    """Sizes of an encoder by its tensors, one per stage."""

    widths: list[int]
    depths: list[int]
    patches: list[int]

    def __str__(self) -> str:
        words = [', '.join(map(str, sizes)) for sizes in self]
        if len(self.widths) == 1:
            return (f'{words[0]} wide and {words[1]} layers deep with patches '
                    f'of {words[2]} pixels')
        return (f'{words[0]} wide and {words[1]} layers deep in its stages, '
                f'with patches of {words[2]}')


def read_sizes(state: StateDict, prefix: str = '') -> Sizes | None:
    """Read the sizes of the encoder in a state dict.

    Args:
        state (StateDict): A state dict under our names.
        prefix (str): Prefix of the encoder's names. Defaults to none.

    Returns:
        Sizes: Sizes of each stage; None if there is no encoder.
    """
    stages = ['']
    if f'{prefix}conv_stages.0.patch_embed.projection.weight' in state:
        stages = ['conv_stages.0.', 'conv_stages.1.', '']
    sizes = Sizes([], [], [])
    for stage in stages:
        weight = state.get(f'{prefix}{stage}patch_embed.projection.weight')
        blocks = f'{prefix}{stage}{"blocks" if stage else "layers"}.'
        numbers = {k[len(blocks):].split('.')[0] for k in state
                   if k.startswith(blocks)}
        if weight is None or weight.dim() != 4 or not numbers or (
                weight.numel() == 0):
            return None
        sizes.widths.append(weight.shape[0])
        sizes.depths.append(len(numbers))
        sizes.patches.append(weight.shape[-1])
    return sizes


def is_hybrid(state: StateDict) -> bool:
    """Whether an encoder, or a model's encoder, has convolution stages."""
    return any('conv_stages.' in name for name in state)


def _check_encoder(state: StateDict, expected: StateDict) -> None:
    """Check that two encoders are of one kind and size."""
    pair = (state, expected)
    kinds = [is_hybrid(s) for s in pair
             if any('layers.' in k and '.attn.' in k for k in s)]
    if len(set(kinds)) == 2:
        raise CheckpointError(
            f'it contains {KINDS[kinds[0]]}, the model has '
            f'{KINDS[kinds[1]]}, and neither can initialise the other; use a '
            f'config with the backbone {_BACKBONES[kinds[0]]}, or a '
            'checkpoint of the other kind')
    theirs, ours = map(read_sizes, pair)
    if theirs and ours and theirs != ours:
        raise CheckpointError(
            f"its encoder is {theirs}, the model's {ours}; choose the "
            'model (backbone.arch, backbone.patch_size; --model of `cmae '
            'pretrain`) of the same width, depth and patch size')


def _check_values(model: nn.Module, state: StateDict,
                  expected: StateDict) -> None:
    """Check that weights are finite floating-point numbers."""
    weights = {k for k, _ in model.named_parameters()}
    weights |= {k for k in expected
                if k.endswith(('running_mean', 'running_var'))}
    wrong: dict[str, list[str]] = {}
    for name in state.keys() & expected.keys():
        value, wanted = state[name], expected[name]
        if value.is_floating_point() != wanted.is_floating_point():
            wrong.setdefault(f'of {value.dtype}', []).append(name)
        # A wider dtype may exceed the model's range.
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
            inflate: bool = False,
            grid: Pair | None = None) -> Fitting:
    """Compare a state dict with a model without loading it.

    Args:
        model (nn.Module): The model.
        state (StateDict): A state dict with the model's names.
        optional (Sequence[str]): Optional names, in addition to the target's
            count of steps. Defaults to none.
        inflate (bool): Whether an encoder of colour images may start one of
            other channels. Defaults to False.
        grid (tuple[int, int], optional): Height and width of the state dict's
            images in patches. Defaults to a square.

    Returns:
        Fitting: The tensors that fit, with positions of another grid
        resampled, and the report.

    Raises:
        CheckpointError: If one encoder is a plain ViT and the other a hybrid,
            encoders differ in width, depth or patch size, weights are not
            finite floating-point numbers, or channels differ and cannot be
            inflated.
    """
    expected = model.state_dict()
    _check_encoder(state, expected)
    _check_values(model, state, expected)
    state = dict(state)
    inflated = _inflate_to(state, expected) if inflate else []
    resampled = _resample_to(state, expected, grid, next(
        (m.patch_resolution for m in model.modules()
         if hasattr(m, 'patch_resolution')), None))
    misshapen = {k for k in state.keys() & expected.keys()
                 if state[k].shape != expected[k].shape}
    spare = (STEPS, *optional)
    report = KeyReport(
        matched=sorted((state.keys() & expected.keys()) - misshapen),
        missing=sorted(k for k in expected.keys() - state.keys()
                       if k not in spare),
        unexpected=sorted(state.keys() - expected.keys()),
        misshapen=sorted(
            f'{k}: {tuple(state[k].shape)} in the checkpoint, '
            f'{tuple(expected[k].shape)} in the model' for k in misshapen),
        resampled=resampled,
        inflated=inflated)
    return Fitting({k: state[k] for k in report.matched}, report)


def check_fit(model: nn.Module,
              state: StateDict,
              advice: str = 'use the config that it was trained with',
              most_listed: int | None = None,
              **options: Any) -> Fitting:
    """Check that a state dict fits a model, without loading it.

    Args:
        model (nn.Module): The model.
        state (StateDict): A state dict under the model's names.
        advice (str): Last line of the error.
        most_listed (int, optional): Number of keys of each kind in the error.
            Defaults to all.
        **options: Arguments of :func:`compare`.

    Returns:
        Fitting: The tensors that fit, and the report.

    Raises:
        CheckpointError: If keys are missing, unexpected or misshapen, or
            weights cannot be used, see :func:`compare`.
    """
    fitting = compare(model, state, **options)
    if fitting.state and fitting.report.fits:
        return fitting
    what = ('the checkpoint does not fit' if fitting.state else
            'nothing in the checkpoint fits')
    raise CheckpointError(
        f'{what} the model:\n{fitting.report.listed(most_listed)}\n{advice}')


def load_state(model: nn.Module, state: StateDict,
               **options: Any) -> KeyReport:
    """Load a state dict into a model, completely or not at all.

    Position embeddings of another grid are resampled. Its arguments and
    errors are those of :func:`check_fit`.

    Returns:
        KeyReport: Matched and other keys.
    """
    fitting, report = check_fit(model, state, **options)
    model.load_state_dict(fitting, strict=False)
    return report


def inflate(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Convert a patch embedding to another number of channels.

    Each new channel gets the mean over the old channels, times old / new
    number of channels. An image with equal normalised values in all channels
    gives the same tokens.

    Args:
        weight (torch.Tensor): Weight of a convolution, (D, C, P, P).
        channels (int): The new number of channels.

    Returns:
        torch.Tensor: (D, channels, P, P).
    """
    shared = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return shared.repeat(1, channels, 1, 1)


def _inflate_to(state: StateDict, expected: StateDict) -> list[str]:
    """Inflate the patch embedding of the image, in place."""
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
            f'for {ours[1]}; only encoders of {_COLOURS} channels can be '
            'adapted')
    state[name] = inflate(state[name], ours[1])
    return [f'{name}: made for {ours[1]} channel(s) of the mean over '
            f'{theirs[1]}, times {theirs[1]}/{ours[1]}, which preserves the '
            'output for images with equal channels']


def resample_pos_embed(pos_embed: torch.Tensor,
                       grid: ImageSize,
                       num_prefix: int = 1,
                       old: Pair | None = None) -> torch.Tensor:
    """Resample position embeddings to another grid of patches.

    Bicubic with anti-aliasing, as in timm. Prefix positions are unchanged.

    Args:
        pos_embed (torch.Tensor): Position embeddings, (1, prefix + L, D).
        grid (int | Sequence[int]): The new grid, in patches: the side of a
            square, or (height, width).
        num_prefix (int): Number of positions before those of the patches, as
            the class token's. Defaults to 1.
        old (tuple[int, int], optional): Height and width of the old grid.
            Defaults to a square.

    Returns:
        torch.Tensor: Position embeddings, (1, prefix + height * width, D), of
        the same dtype.

    Raises:
        ValueError: If the number of positions is not that of the old grid.
    """
    new = to_pair(grid, 'grid')
    found = find_grid(pos_embed.shape[1] - num_prefix, old)
    if found is None:
        raise ValueError(
            f'{pos_embed.shape[1] - num_prefix} patch positions do not form a '
            'square; set their grid')
    if found == new:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.float().reshape(1, *found, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(
        patches, size=new, mode='bicubic', antialias=True)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, patches.to(pos_embed.dtype)], dim=1)


def grid_of(state: StateDict, record: Mapping[str, Any],
            prefix: str = '') -> Pair | None:
    """Return the recorded grid of an encoder for rectangular images.

    Args:
        state (StateDict): A state dict under our names.
        record (Mapping[str, Any]): The encoder's settings, see
            :func:`~cmae_mm.checkpoints.encoder_config.encoder_record`.
        prefix (str): Prefix of the encoder's names. Defaults to none.

    Returns:
        tuple[int, int] | None: Height and width in patches.
    """
    sizes, size = read_sizes(state, prefix), record.get('img_size')
    if sizes is None or size is None:
        return None
    patch = max(math.prod(sizes.patches), 1)
    return size[0] // patch, size[1] // patch


def _resample_to(state: StateDict, expected: StateDict, old: Pair | None,
                 new: Pair | None) -> list[str]:
    """Resample positions that differ in their grid only, in place."""
    lines = []
    for name in [k for k in state if k.endswith('pos_embed')]:
        value, wanted = state[name], expected.get(name)
        if wanted is None or value.dim() not in (3, 4) or (
                value.dim() != wanted.dim() or len(value) != 1
                or value.shape[-1] != wanted.shape[-1]):
            continue
        # A map of ViTSAM, (1, H, W, D), has no class token's position; others
        # may have one or none.
        grids = [tuple(x.shape[1:3]) if x.dim() == 4 else grid
                 for x, grid in ((value, old), (wanted, new))]
        lengths = [x.flatten(1, -2).shape[1] for x in (value, wanted)]
        tokens = expected.get(name.replace('pos_embed', 'cls_token'))
        count = 1 if tokens is None else tokens.shape[1]
        for prefix in (count, 0) if value.dim() == 3 else (0, ):
            found = find_grid(lengths[1] - prefix, grids[1])
            if found is None or grids[1] not in (None, found):
                continue
            # Without a record, a square or the model's grid.
            patches = lengths[0] - prefix
            start = find_grid(patches, grids[0]) or find_grid(patches, found)
            if start is None:
                continue
            if start != found:
                state[name] = resample_pos_embed(
                    value.flatten(1, -2), found, prefix, start).view(
                        wanted.shape)
                lines.append('{}: {}x{} to {}x{}'.format(
                    name, *start, *found))
            break
    return lines
