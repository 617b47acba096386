"""Optimizer wrappers: precision, skipped steps, and parameter groups."""
import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub, MMLogger, print_log
from mmengine.optim import (AmpOptimWrapper, DefaultOptimWrapperConstructor,
                            OptimWrapper)
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ..checkpoints import CheckpointError
from ..models.utils import local_shard
from .device import has_accelerator

try:  # torch 2.3 or newer
    from torch.amp import GradScaler
except ImportError:
    from torch.cuda.amp import GradScaler

DTYPES = ('bfloat16', 'float16', 'float32')
# Settings that change results by rounding only.
_KERNELS = ('fused', 'foreach')
# Largest number of image names in a report of a skipped step.
_NAMES_SHOWN = 8


class NonFiniteError(RuntimeError):
    """Training was stopped because its steps are not finite."""


def grad_norm(grads: Sequence[Tensor], norm_type: float = 2.) -> Tensor:
    """Compute the norm over all gradients with few kernels.

    Args:
        grads (Sequence[Tensor]): Gradients, on one device.
        norm_type (float): p of the p-norm. Defaults to 2.

    Returns:
        Tensor: A float32 scalar. If gradients are sharded, it is the norm
        over all shards, and all ranks must call this.
    """
    parts = [local_shard(g) for g in grads]
    # A shard is empty if a parameter has fewer rows than there are ranks.
    norms = torch._foreach_norm([p for p in parts if p.numel()], norm_type)
    norm = torch.linalg.vector_norm(torch.stack(
        [n.float() for n in norms] or [parts[0].new_zeros(())]), norm_type)
    if parts[0] is grads[0]:
        return norm
    if norm_type == float('inf'):
        dist.all_reduce(norm, op=dist.ReduceOp.MAX)
        return norm
    powers = norm.pow(norm_type)
    dist.all_reduce(powers)
    return powers.pow(1 / norm_type)


def part_norms(model: nn.Module) -> dict[str, Tensor]:
    """Compute the gradient norm of each part of a model.

    Args:
        model (nn.Module): The model, with or without a distributed wrapper.

    Returns:
        dict[str, Tensor]: Norms by name of the part, for instance 'backbone'
        or, within necks and heads, 'neck.pixel_decoder'.
    """
    grads = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            modules = name.removeprefix('module.').split('.')
            depth = 2 if modules[0] in ('neck', 'head') and (
                len(modules) > 2) else 1
            grads['.'.join(modules[:depth])].append(parameter.grad)
    return {part: grad_norm(g) for part, g in grads.items()}


class StepGuard:
    """Undoes, counts and reports steps that are not finite.

    Args:
        max_skipped (int): Number of skipped steps in a row that stops the
            training.

    Raises:
        ValueError: If it is below 1.
    """

    def __init__(self, max_skipped: int) -> None:
        if max_skipped < 1:
            raise ValueError('max_skipped must be 1 or more steps in a row, '
                             f'but got {max_skipped}')
        self.max_skipped = max_skipped
        self.in_a_row = 0
        self.model: nn.Module | None = None
        self._owned: list[dict] = []  # buffers of each module by name
        self._buffers: list[Tensor] = []
        # Buffers and their copies by dtype, each copied by one kernel.
        self._kept: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        self.samples: list[Any] = []  # of the step, set by SkippedStepHook

    @torch.compiler.disable
    @torch.no_grad()
    def keep_buffers(self, model: nn.Module) -> None:
        """Copy a model's buffers, such as BatchNorm statistics.

        Args:
            model (nn.Module): The model before a step.
        """
        if model is not self.model:
            # Modules are walked once: that takes longer than the copies.
            self.model = model
            self._owned = [m._buffers for m in model.modules()]
        buffers = [b for owned in self._owned if owned
                   for b in owned.values() if b is not None]
        if [id(b) for b in buffers] != [id(b) for b in self._buffers]:
            self._buffers, self._kept = buffers, {}
            for buffer in dict.fromkeys(buffers):
                now, kept = self._kept.setdefault(buffer.dtype, ([], []))
                now.append(buffer)
                kept.append(buffer.clone())
            return
        for now, kept in self._kept.values():
            torch._foreach_copy_(kept, now)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Restore the buffers to their values before the step."""
        for now, kept in self._kept.values():
            torch._foreach_copy_(now, kept)

    def accept(self) -> None:
        """Count an optimizer step."""
        self.in_a_row = 0

    def reject(self, optimizer: torch.optim.Optimizer, loss: float,
               norm: float, hub: MessageHub, scaled: bool) -> None:
        """Count a skipped step, warn, and stop after too many.

        Args:
            optimizer (torch.optim.Optimizer): The optimizer, with the step's
                gradients.
            loss (float): Loss of the step.
            norm (float): Norm over all gradients.
            hub (MessageHub): The message hub, which stores the count.
            scaled (bool): Whether the step is skipped to lower the loss scale
                of float16.

        Raises:
            NonFiniteError: After ``max_skipped`` of them in a row.
        """
        self.in_a_row += 1
        name = 'scaler_steps' if scaled else 'skipped_steps'
        key = f'train/{name}'
        scalars = hub.log_scalars
        before = scalars[key].current() if key in scalars else 0
        hub.update_scalar(key, before + 1)
        what = f'loss {loss:g}, gradient norm {norm:g}'
        step = hub.get_info('iter', -1) + 1
        if self.in_a_row >= self.max_skipped:
            raise NonFiniteError(self._report(optimizer, step, what))
        if scaled:
            return
        print_log(
            f'Skipped the step of iteration {step}, which is not finite '
            f'({what}): parameters and target are unchanged. '
            f'Images: {self._images()}.',
            logger='current',
            level=logging.WARNING)

    def _report(self, optimizer: torch.optim.Optimizer, step: int,
                what: str) -> str:
        norms = ', '.join(
            f'{part} {float(norm):.3g}'
            for part, norm in part_norms(self.model or nn.Module()).items())
        rates = [float(g['lr']) for g in optimizer.param_groups]
        return (
            f'Stopped at iteration {step}: {self.in_a_row} steps in a '
            f'row were not finite ({what}). Gradient norms: {norms}. Learning '
            f'rate: {max(rates):.3g}. Images of the last step: '
            f'{self._images()}. No parameter was changed by these steps and '
            'checkpoints are intact. Lower optim_wrapper.optimizer.lr (in a '
            'new run, by --no-resume: a resumed run keeps its own), set '
            'optim_wrapper.clip_grad=dict(max_norm=3.), or check '
            'data_preprocessor.mean and std and these images; '
            f'optim_wrapper.max_skipped={self.max_skipped} sets how many '
            'steps are allowed.')

    def _images(self) -> str:
        paths = [str(s.img_path) for s in self.samples
                 if getattr(s, 'img_path', None) is not None]
        shown = ', '.join(paths[:_NAMES_SHOWN]) or 'unknown'
        more = len(paths) - _NAMES_SHOWN
        return f'{shown} and {more} more' if more > 0 else shown


@OPTIM_WRAPPERS.register_module()
class AutoAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for any dtype and machine.

    bfloat16 is used without loss scaler. Without an accelerator, where
    ``AmpOptimWrapper`` raises, training is in float32, which is logged.

    Adam and AdamW use torch's fused kernel if the device has one, unless their
    settings select another.

    If loss or gradients are not finite on any process, the step is skipped on
    all: parameters, optimizer state and CMAE's target do not change, and
    buffers such as BatchNorm statistics are restored. The step is logged with
    its images and counted as ``skipped_steps``. Steps skipped by float16's
    loss scaler to adjust its scale are counted as ``scaler_steps``.

    Cost per optimizer step: one norm over all gradients, also used by
    ``clip_grad``, a copy of the buffers, and one synchronisation with the
    device, plus that of float16's loss scaler.

    Args:
        dtype (str): 'bfloat16', 'float16' or 'float32'. Defaults to
            'bfloat16'.
        loss_scale (str | float | dict): Loss scale for float16, see
            ``AmpOptimWrapper``. Defaults to 'dynamic'.
        max_skipped (int): Number of non-finite steps in a row that stops
            training with a report. Defaults to 10.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If the dtype is invalid, ``max_skipped`` below 1, or
            ``clip_grad`` without ``max_norm`` or ``clip_value``.
        NonFiniteError: In training, after ``max_skipped`` skipped steps.
    """

    def __init__(self,
                 dtype: str = 'bfloat16',
                 loss_scale: str | float | dict = 'dynamic',
                 max_skipped: int = 10,
                 **kwargs) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {DTYPES}, but got '
                             f'{dtype!r}')
        if dtype != 'float32' and not has_accelerator():
            print_log(
                'No accelerator found: training in float32 instead of '
                f'{dtype}.',
                logger='current')
            dtype = 'float32'
        self.autocasts = dtype != 'float32'
        # mmengine removes an entry of the config's dict.
        kwargs['clip_grad'] = copy.copy(kwargs.get('clip_grad'))
        if self.autocasts:
            if dtype == 'bfloat16':
                loss_scale = dict(enabled=False)
            super().__init__(loss_scale=loss_scale, dtype=dtype, **kwargs)
        else:  # AmpOptimWrapper raises without an accelerator
            OptimWrapper.__init__(self, **kwargs)
            self._scale_update_param = None
            self.loss_scaler = GradScaler(enabled=False)
            self.cast_dtype = getattr(torch, dtype)
        clip = self.clip_grad_kwargs
        if clip:
            bound = dict(grad_norm='max_norm', grad_value='clip_value')[
                self.grad_name]
            if clip.get(bound) is None:
                raise ValueError(
                    f'clip_grad={dict(clip)} has no {bound}; set '
                    f'optim_wrapper.clip_grad.{bound} to a number above 0, or '
                    'remove clip_grad')
        # The optimizer reads them for each parameter; a ConfigDict is slow.
        self.optimizer.param_groups[:] = [
            dict(group.items()) for group in self.optimizer.param_groups]
        if enable_fused(self.optimizer):
            print_log("The optimizer uses torch's fused kernel.",
                      logger='current')
        self.guard = StepGuard(max_skipped)
        self._losses: list[Tensor] = []

    def begins_step(self) -> bool:
        """Return whether the next iteration starts an optimizer step."""
        return self._inner_count % self._accumulative_counts == 0

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast unless in float32, and delay gradient synchronisation."""
        if self.begins_step() or self.guard.model is None:
            self.guard.keep_buffers(model)
        context = AmpOptimWrapper if self.autocasts else OptimWrapper
        with context.optim_context(self, model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Compute gradients, and store the loss for the check.

        Args:
            loss (Tensor): Loss of an iteration.
            **kwargs: Arguments of ``Tensor.backward``.
        """
        self._losses.append(loss.detach())
        super().backward(loss, **kwargs)

    @torch.compiler.disable
    def step(self, **kwargs) -> None:
        """Clip gradients and update parameters, unless the step is not finite.

        Args:
            **kwargs: Arguments of the optimizer's ``step``.

        Raises:
            NonFiniteError: After ``max_skipped`` skipped steps in a row.
        """
        scaler = self.loss_scaler
        scaler.unscale_(self.optimizer)
        grads = [
            p.grad for group in self.optimizer.param_groups
            for p in group['params'] if p.grad is not None
        ]
        loss, norm, loss_bad, norm_bad = self._check_finite(grads)
        if not loss_bad and not norm_bad:
            self.guard.accept()
            self._clip(grads, norm)
            # The scaler's step would check for inf again.
            self.optimizer.step(**kwargs)
            scaler.update(self._scale_update_param)
            return
        # If only gradients overflow, the scale of float16 is too large and the
        # scaler lowers it.
        scaled = scaler.is_enabled() and not loss_bad
        if scaler.is_enabled():
            scaler.update(
                self._scale_update_param if scaled else scaler.get_scale())
        if not scaled:
            self.guard.restore_buffers()
        self.guard.reject(self.optimizer, loss, norm, self.message_hub,
                          scaled)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state, also from a machine with other kernels.

        Args:
            state_dict (dict): See ``AmpOptimWrapper.load_state_dict``.

        Raises:
            CheckpointError: If it is the state of another optimizer, or of
                other parameter groups.
        """
        copy_kernel_settings(self.optimizer, state_dict)
        name = type(self.optimizer).__name__
        needed = {key for key in self.optimizer.param_groups[0]
                  if not key.startswith('initial_')}
        try:
            super().load_state_dict(state_dict)
            lacks = needed - set(self.optimizer.param_groups[0])
            if lacks:
                raise ValueError(f'it lacks {", ".join(sorted(lacks))}')
        except ValueError as error:
            raise CheckpointError(
                f'its optimizer state does not fit the {name} of the config '
                f'({error}); a run can only be resumed with the same '
                'optimizer and paramwise_cfg; to change them, start a new run '
                'with load_from') from error

    def _check_finite(self, grads: list[Tensor]) -> tuple[float, ...]:
        """Check losses and gradients of all processes.

        Returns:
            tuple: This process's loss and gradient norm, and whether the loss
            and the norm are not finite on any process.
        """
        clip = self.clip_grad_kwargs or {}
        losses, self._losses = self._losses, []
        device = grads[0].device if grads else None
        loss = sum((x.float().sum() for x in losses),
                   torch.zeros((), device=device))
        norm = torch.zeros((), device=device)
        if grads:
            norm = grad_norm(grads, float(clip.get('norm_type', 2.)))
        numbers = torch.stack([loss, norm])
        bad = (~numbers.isfinite()).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        # The only synchronisation of the step.
        return tuple(torch.cat([numbers, bad]).tolist())

    def _clip(self, grads: list[Tensor], norm: float) -> None:
        """Clip gradients with the computed norm."""
        if not self.clip_grad_kwargs or not grads:
            return
        if self.grad_name != 'grad_norm':
            self._clip_grad()
            return
        share = float(self.clip_grad_kwargs['max_norm']) / (norm + 1e-6)
        if share < 1:
            torch._foreach_mul_([local_shard(g) for g in grads], share)
        self.message_hub.update_scalar('train/grad_norm', norm)


def with_step_guard(optim_wrapper: Any) -> Any:
    """Replace mmengine's plain wrapper by ``AutoAmpOptimWrapper``.

    Args:
        optim_wrapper (dict | OptimWrapper): ``optim_wrapper`` of a config.

    Returns:
        dict | OptimWrapper: ``AutoAmpOptimWrapper`` in float32 for an
        ``OptimWrapper``, otherwise unchanged.
    """
    if not isinstance(optim_wrapper, dict) or 'optimizer' not in optim_wrapper:
        return optim_wrapper
    kind = optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'mmengine.OptimWrapper', OptimWrapper):
        return optim_wrapper
    return dict(optim_wrapper, type='mmpretrain.AutoAmpOptimWrapper',
                dtype='float32')


def enable_fused(optimizer: Optimizer) -> bool:
    """Use torch's fused kernel for Adam and AdamW, in place.

    On a CPU this is several times as fast as torch's loop over parameters.
    Optimizers with an explicit setting do not change.

    Args:
        optimizer (Optimizer): The optimizer, before its first step.

    Returns:
        bool: Whether it is fused; False if torch has no such kernel for the
        device.
    """
    groups = optimizer.param_groups
    given = _KERNELS + ('capturable', 'differentiable')
    if type(optimizer) not in (Adam, AdamW) or optimizer.state or any(
            group.get(name) for group in groups for name in given):
        return False
    parameters = [p for group in groups for p in group['params']]
    if len({p.device for p in parameters}) != 1 or not all(
            p.is_floating_point() for p in parameters):
        return False
    sample = torch.nn.Parameter(torch.zeros(1, device=parameters[0].device))
    try:
        type(optimizer)([sample], fused=True)
    except RuntimeError:  # older versions of torch, or other devices
        return False
    for group in groups:
        group['fused'] = True
    optimizer.defaults['fused'] = True
    return True


def copy_kernel_settings(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Set the kernels of a saved state to this optimizer's, in place.

    The state may come from a machine with other kernels.

    Args:
        optimizer (Optimizer): The optimizer that will load it.
        state (dict): A ``state_dict`` of an optimizer.
    """
    saved: list[dict[str, Any]] = state.get('param_groups', [])
    for group, own in zip(saved, optimizer.param_groups):
        group.update({name: own[name] for name in _KERNELS if name in own})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with equal parameter groups merged.

    mmengine creates one group per parameter, several hundred for a ViT, each
    with its own kernels and several log lines. This class creates one group
    and one log line per distinct setting, from the same ``paramwise_cfg``.
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs):
        """Add all trainable parameters of a module, merged into groups.

        Args:
            params (list[dict]): The groups, modified in place.
            module (nn.Module): The module.
            **kwargs: See ``DefaultOptimWrapperConstructor``; only in recursive
                calls.
        """
        if kwargs:  # a recursive call from the base class
            return super().add_params(params, module, **kwargs)
        single: list[dict] = []
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            super().add_params(single, module)
        finally:
            logger.setLevel(level)

        merged: dict[tuple, list] = defaultdict(list)
        for group in single:
            parameters = group.pop('params')
            merged[tuple(sorted(group.items()))].extend(parameters)
        for settings, parameters in merged.items():
            params.append(dict(params=parameters, **dict(settings)))
            count = sum(p.numel() for p in parameters)
            described = ', '.join(f'{k}={v:g}' for k, v in settings)
            print_log(
                f'Optimizer group of {len(parameters)} parameters '
                f'({count:,} values): {described or "defaults"}',
                logger='current')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer decay, for detectors and segmentors too.

    The depth of a parameter is the backbone's ``get_layer_depth``; necks and
    heads are the last layer, at the full learning rate. See mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor`` for ``paramwise_cfg``.

    Raises:
        ValueError: If the backbone has no ``get_layer_depth``.
    """

    def add_params(self,
                   params: list[dict],
                   module: nn.Module,
                   prefix: str = '',
                   get_layer_depth: Callable | None = None,
                   **kwargs) -> None:
        """Add all parameters of a model, each with its rate and decay.

        Args:
            params (list[dict]): The groups, modified in place.
            module (nn.Module): The model.
            prefix (str): Prefix of names, only in recursive calls.
            get_layer_depth (Callable, optional): Depth of a parameter by its
                name, only in recursive calls.
            **kwargs: Further arguments of the recursion.
        """
        if get_layer_depth is None:
            backbone: Any = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise ValueError(
                    'layer decay needs a model whose backbone has '
                    'get_layer_depth, as TransferViT and TransferViTDet, but '
                    f'the backbone of {type(module).__name__} is '
                    f'{type(backbone).__name__}')
            get_layer_depth = partial(
                backbone.get_layer_depth, prefix='backbone.')
        super().add_params(
            params,
            module,
            prefix=prefix,
            get_layer_depth=get_layer_depth,
            **kwargs)
