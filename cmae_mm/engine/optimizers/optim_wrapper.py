"""Mixed precision for any device, without steps that are not finite."""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple, Union

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ...models.utils import local_part
from ..device import has_accelerator
from .step_guard import StepGuard, grad_norm

try:  # torch 2.3 or newer
    from torch.amp import GradScaler
except ImportError:
    from torch.cuda.amp import GradScaler

DTYPES = ('bfloat16', 'float16', 'float32')
# Settings that change results by rounding alone.
_KERNELS = ('fused', 'foreach')


@OPTIM_WRAPPERS.register_module()
class AutoAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for any dtype and machine.

    Training in bfloat16 has no loss scaler, which it does not need. Without
    an accelerator, where ``AmpOptimWrapper`` raises, training is in float32,
    which is logged.

    Adam and AdamW update all parameters in one pass where torch has a fused
    kernel for the device, unless their settings select another.

    A step whose loss or gradients are not finite on any process is skipped
    on all: parameters, the optimizer's state and CMAE's target stay as they
    are, and buffers such as BatchNorm statistics are restored. It is logged,
    with its images, and counted as ``skipped_steps``. Steps that float16's
    loss scaler skips while it searches for its scale are counted separately,
    as ``scaler_steps``.

    The check costs one norm over all gradients, which ``clip_grad`` uses too,
    a copy of the buffers, and one synchronisation with the device in each
    optimizer step; float16's loss scaler adds its own.

    Args:
        dtype (str): 'bfloat16', 'float16' or 'float32'. Defaults to
            'bfloat16'.
        loss_scale (str | float | dict): Loss scale for float16, see
            ``AmpOptimWrapper``. Defaults to 'dynamic'.
        max_skipped (int): Number of steps in a row that are not finite after
            which training stops with a report. Defaults to 10.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If the dtype is invalid, or ``max_skipped`` below 1.
        NonFiniteError: In training, after ``max_skipped`` skipped steps.
    """

    def __init__(self,
                 dtype: str = 'bfloat16',
                 loss_scale: Union[str, float, dict] = 'dynamic',
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
        if self.autocasts:
            if dtype == 'bfloat16':
                loss_scale = dict(enabled=False)
            super().__init__(loss_scale=loss_scale, dtype=dtype, **kwargs)
        else:  # AmpOptimWrapper raises without an accelerator
            OptimWrapper.__init__(self, **kwargs)
            self._scale_update_param = None
            self.loss_scaler = GradScaler(enabled=False)
            self.cast_dtype = getattr(torch, dtype)
        if use_fused(self.optimizer):
            print_log('The optimizer updates all parameters in one pass.',
                      logger='current')
        self.guard = StepGuard(max_skipped)
        self._losses: List[Tensor] = []

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
        # Only gradients overflow if the scale of float16 is too large: the
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
        """Load a state, also one of a machine with other kernels.

        Args:
            state_dict (dict): See ``AmpOptimWrapper.load_state_dict``.
        """
        keep_kernels(self.optimizer, state_dict)
        super().load_state_dict(state_dict)

    def _check_finite(self, grads: List[Tensor]) -> Tuple[float, ...]:
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

    def _clip(self, grads: List[Tensor], norm: float) -> None:
        """Clip gradients by the norm that is already computed."""
        if not self.clip_grad_kwargs or not grads:
            return
        if self.grad_name != 'grad_norm':
            self._clip_grad()
            return
        share = float(self.clip_grad_kwargs['max_norm']) / (norm + 1e-6)
        if share < 1:
            torch._foreach_mul_([local_part(g) for g in grads], share)
        self.message_hub.update_scalar('train/grad_norm', norm)


def skipping_steps(optim_wrapper: Any) -> Any:
    """Replace mmengine's plain wrapper by ``AutoAmpOptimWrapper``.

    Args:
        optim_wrapper (dict | OptimWrapper): ``optim_wrapper`` of a config.

    Returns:
        dict | OptimWrapper: In float32, if it was an ``OptimWrapper``'s
        config; otherwise the same.
    """
    if not isinstance(optim_wrapper, dict) or 'optimizer' not in optim_wrapper:
        return optim_wrapper
    kind = optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'mmengine.OptimWrapper', OptimWrapper):
        return optim_wrapper
    return dict(optim_wrapper, type='mmpretrain.AutoAmpOptimWrapper',
                dtype='float32')


def use_fused(optimizer: Optimizer) -> bool:
    """Let Adam and AdamW use torch's fused kernel, in place.

    On a CPU this is several times as fast as torch's loop over parameters.
    Optimizers with a setting of their own do not change.

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


def keep_kernels(optimizer: Optimizer, state: Dict[str, Any]) -> None:
    """Set a saved state's kernels to those of this optimizer, in place.

    The state may have been saved on a machine with other kernels.

    Args:
        optimizer (Optimizer): The optimizer that will load it.
        state (dict): A ``state_dict`` of an optimizer.
    """
    saved: List[Dict[str, Any]] = state.get('param_groups', [])
    for group, own in zip(saved, optimizer.param_groups):
        group.update({name: own[name] for name in _KERNELS if name in own})
