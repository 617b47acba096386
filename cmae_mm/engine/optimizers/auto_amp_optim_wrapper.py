"""Mixed precision that one config can ask for on every machine."""
from contextlib import contextmanager
from typing import Any, List, Tuple, Union

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from ...models.utils import local_part
from ..device import has_accelerator
from .fused import keep_how, use_fused
from .step_guard import StepGuard, grad_norm

try:  # torch 2.3 or newer
    from torch.amp import GradScaler
except ImportError:
    from torch.cuda.amp import GradScaler

DTYPES = ('bfloat16', 'float16', 'float32')


@OPTIM_WRAPPERS.register_module()
class AutoAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for any dtype and machine.

    Training in bfloat16 has no loss scaler, which it does not need. Without
    an accelerator, where ``AmpOptimWrapper`` raises, training is in float32
    and the log says so.

    Adam and AdamW update all parameters in one pass where torch has a fused
    kernel for the device and their settings do not say otherwise.

    A step whose loss or gradients are not finite on any process is left out
    on all: parameters, the optimizer's state and CMAE's target stay as they
    are, and buffers such as BatchNorm statistics are put back to what they
    were before it. It is logged, with its images, and counted as
    ``skipped_steps``. Steps that float16's loss scaler leaves out while it
    finds its scale are counted apart, as ``scaler_steps``.

    The decision costs one norm over all gradients, which ``clip_grad`` shares,
    a copy of the buffers, and one synchronisation with the device in each
    optimizer step, where the result is read (``_look_at``); float16's loss
    scaler adds its own.

    Args:
        dtype (str): 'bfloat16', 'float16' or 'float32'. Defaults to
            'bfloat16'.
        loss_scale (str | float | dict): Loss scale for float16, see
            ``AmpOptimWrapper``. Defaults to 'dynamic'.
        max_skipped (int): Number of steps in a row that are not finite after
            which training stops with a report. Defaults to 10.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If the dtype is none of these, or ``max_skipped`` below 1.
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
        """Say whether the next iteration is an optimizer step's first."""
        return self._inner_count % self._accumulative_counts == 0

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast, where this wrapper does, and hold back gradient syncs."""
        if self.begins_step() or self.guard.model is None:
            self.guard.keep_buffers(model)
        context = AmpOptimWrapper if self.autocasts else OptimWrapper
        with context.optim_context(self, model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Compute gradients, and keep the loss for the decision.

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
        loss, norm, loss_amiss, norm_amiss = self._look_at(grads)
        if not loss_amiss and not norm_amiss:
            self.guard.accept()
            self._clip(grads, norm)
            # Not the scaler's step, which would look for inf once more.
            self.optimizer.step(**kwargs)
            scaler.update(self._scale_update_param)
            return
        # Gradients alone are beyond float16 when the scale is too large: the
        # scaler has seen it too, and lowers the scale.
        scaled = scaler.is_enabled() and not loss_amiss
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
        keep_how(self.optimizer, state_dict)
        super().load_state_dict(state_dict)

    def _look_at(self, grads: List[Tensor]) -> Tuple[float, ...]:
        """Look for what is not finite.

        Returns:
            tuple: This process's loss and gradient norm, and whether the loss
            and the norm are amiss on any process.
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
        amiss = (~numbers.isfinite()).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(amiss, op=dist.ReduceOp.MAX)
        # The step's one synchronisation.
        return tuple(torch.cat([numbers, amiss]).tolist())

    def _clip(self, grads: List[Tensor], norm: float) -> None:
        """Clip gradients, by the norm that is known already."""
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
    """Put ``AutoAmpOptimWrapper`` in the place of mmengine's plain wrapper.

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
