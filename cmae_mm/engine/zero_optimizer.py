"""DeepSpeed's ZeRO as an optimizer for hooks and schedules.

DeepSpeed is an extra (extra='deepspeed').
"""
from typing import Any, Dict, Iterator, List, Tuple

import torch
from mmengine.dist import is_main_process
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from .optimizers import AutoAmpOptimWrapper

_MOMENTS = ('exp_avg', 'exp_avg_sq')  # of AdamW


class ZeroOptimizer(Optimizer):
    """An optimizer whose state ranks share out, by DeepSpeed's ZeRO 1 or 2.

    DeepSpeed flattens each group of parameters, and every rank updates its
    piece. This one has the groups as they were, for schedules; is stepped
    once a step, for hooks such as that which moves the target; and gives and
    takes the state of each parameter, whole, as an unsharded run has it.

    Args:
        inner (torch.optim.Optimizer): torch's AdamW over the parameters,
            which becomes DeepSpeed's.
        model (nn.Module): The model, on all ranks.
        config (dict): DeepSpeed's settings.
    """

    def __init__(self, inner: Optimizer, model: nn.Module,
                 config: Dict[str, Any]) -> None:
        super().__init__(
            [dict(g, params=list(g['params'])) for g in inner.param_groups],
            dict(inner.defaults))
        # Not above: importing it prints, and takes seconds.
        import deepspeed
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=inner, config=config,
            dist_init_required=False)
        self.inner = inner
        # Before the first step: DeepSpeed finds parameters' parts of a state
        # in its first group alone, where there is none yet.
        self._set_steps(torch.zeros(()))
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        # Of fused optimizers: whether the step was left out. Hooks ask.
        self.found_inf = torch.zeros(())

    def step(self, closure: Any = None) -> None:
        """Make a step, unless gradients are not finite on some rank."""
        self._share_settings()
        self.engine.step()
        self.found_inf.fill_(float(self.engine.optimizer.overflow))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: DeepSpeed clears gradients in its step."""

    def trained(self) -> Iterator[Tuple[int, nn.Parameter]]:
        """Yield the parameters that are trained, and their numbers."""
        number = 0
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.requires_grad:
                    yield number, parameter
                number += 1

    def state_dict(self) -> Dict[str, Any]:
        """Give the whole state; all ranks must ask.

        Returns:
            dict: As an unsharded optimizer gives it, on CPUs; on other ranks
            than 0 moments are left empty.
        """
        from deepspeed.utils import safe_get_full_optimizer_state
        packed = super().state_dict()
        steps = [value['step'] for value in self.inner.state.values()
                 if 'step' in value]
        state: Dict[int, Dict[str, Any]] = {}
        if steps and float(steps[0]):
            for number, parameter in self.trained():
                state[number] = dict(step=steps[0].clone().cpu())
                for name in _MOMENTS:
                    whole = safe_get_full_optimizer_state(parameter, name)
                    state[number][name] = (
                        whole if is_main_process() else whole.new_empty(0)
                    ).cpu()
        return dict(packed, state=state)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take a whole state; all ranks must take part.

        Args:
            state_dict (dict): Of this optimizer, or of an unsharded run's.
        """
        from deepspeed.utils import safe_set_full_optimizer_state
        state: Dict[int, Dict[str, Any]] = state_dict['state']
        super().load_state_dict(dict(state_dict, state={}))
        self._share_settings()
        if not state:
            return
        self._set_steps(next(iter(state.values()))['step'])
        for number, parameter in self.trained():
            for name in _MOMENTS:
                safe_set_full_optimizer_state(
                    parameter, state[number][name].to(parameter.device), name)

    def _share_settings(self) -> None:
        """Hand learning rates and decay on."""
        for own, theirs in zip(self.param_groups,
                               self.engine.optimizer.param_groups):
            for name in own.keys() - {'params'}:
                theirs[name] = own[name]

    def _set_steps(self, step: Tensor) -> None:
        """Set each piece's number of steps, and make place for a state."""
        pieces: List[Tuple[Tensor, Dict[str, Any]]] = [
            (p, g) for g in self.inner.param_groups for p in g['params']]
        for piece, group in pieces:
            own = self.inner.state[piece]
            # Where torch has it: its fused kernel reads it on the device.
            there = group.get('fused') or group.get('capturable')
            own['step'] = torch.tensor(
                float(step), device=piece.device if there else 'cpu')
            for name in _MOMENTS:
                own.setdefault(name, torch.zeros_like(piece))


@OPTIM_WRAPPERS.register_module()
class ZeroOptimWrapper(AutoAmpOptimWrapper):
    """``AutoAmpOptimWrapper`` for an optimizer that ranks share out.

    Steps are made and skipped as there. DeepSpeed averages and clips the
    gradients. ``ZeroStrategy`` puts it in the place of the config's.

    Args:
        **kwargs: Arguments of ``AutoAmpOptimWrapper``.
    """

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute gradients and share them out.

        Args:
            loss (torch.Tensor): Loss of an iteration.
            **kwargs: Not used.
        """
        self._losses.append(loss.detach())
        # DeepSpeed looks at gradients alone: let a loss that is not finite
        # have such gradients, on all ranks once they are averaged.
        amiss = ~loss.detach().isfinite()
        self.optimizer.engine.backward(
            loss * torch.ones_like(loss).masked_fill(amiss, float('nan')))
        self._inner_count += 1

    @torch.compiler.disable
    def step(self, **kwargs: Any) -> None:
        """Update parameters, unless the step is not finite.

        Args:
            **kwargs: Not used.

        Raises:
            NonFiniteError: After ``max_skipped`` skipped steps in a row.
        """
        losses, self._losses = self._losses, []
        self.optimizer.step()
        norm = float(self.optimizer.engine.get_global_grad_norm())
        if self.optimizer.found_inf:
            self.guard.restore_buffers()
            self.guard.reject(self.optimizer, float(sum(losses)), norm,
                              self.message_hub, False)
            return
        self.guard.accept()
        if self.clip_grad_kwargs:
            self.message_hub.update_scalar('train/grad_norm', norm)
