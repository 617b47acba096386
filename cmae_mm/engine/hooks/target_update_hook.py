"""Moves the target after each optimizer step."""
import math
from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...models.utils.momentum_target import check_momentum
from ..device import unwrapped_model


@HOOKS.register_module()
class TargetUpdateHook(Hook):
    r"""Move CMAE's target by one EMA step after each real optimizer step.

    .. math::
        \theta_t \leftarrow \mu\,\theta_t + (1 - \mu)\,\theta_s

    The cosine goes on where a resumed run stood, and begins anew in a run that
    merely starts from loaded weights.

    It listens to the optimizer itself, so that the target stands still while
    gradients accumulate and when the loss scaler skips a step.

    Args:
        momentum (float, optional): mu, the share of the old target that is
            kept, in (0, 1). Defaults to None, the model's own (0.996).
        end_momentum (float, optional): Where a cosine over the training's
            optimizer steps takes mu, for instance 1.0. Defaults to None,
            constant.

    Raises:
        ValueError: If a momentum is outside what is allowed, or, before
            training, if the model has no target.
    """

    def __init__(self,
                 momentum: Optional[float] = None,
                 end_momentum: Optional[float] = None) -> None:
        if momentum is not None:
            check_momentum(momentum)
        if end_momentum is not None and not 0 < end_momentum <= 1:
            raise ValueError('end_momentum must be above 0 and at most 1, but '
                             f'got {end_momentum}')
        self.momentum = momentum
        self.end_momentum = end_momentum
        self._handle = None

    def before_train(self, runner) -> None:
        """Attach to the optimizer."""
        model = unwrapped_model(runner)
        if getattr(model, 'target', None) is None:
            raise ValueError(
                'TargetUpdateHook moves the target of a CMAE with a '
                f'contrastive head, but {type(model).__name__} has no target; '
                'remove the hook or set model.head.contrastive')
        if runner.iter == 0:
            # A checkpoint that a new run starts from brings its own count.
            model.target.steps.zero_()
        optim_wrapper = runner.optim_wrapper
        accumulate = optim_wrapper._accumulative_counts
        self.attach(
            model,
            optim_wrapper.optimizer,
            num_steps=math.ceil(runner.max_iters / accumulate))

    def after_train(self, runner) -> None:
        """Detach from the optimizer."""
        self.detach()

    def attach(self, model, optimizer, num_steps: int) -> None:
        """Move the model's target after each step of the optimizer.

        The cosine begins at the target's own count of steps.

        Args:
            model (CMAE): A model with a target.
            optimizer (torch.optim.Optimizer): What trains it.
            num_steps (int): K, optimizer steps of the whole training, the
                period of the cosine.
        """
        self.detach()
        target = model.target
        start = 1 - target.momentum if self.momentum is None else self.momentum
        done = int(target.steps)

        def move_target(optimizer, args, kwargs) -> None:
            nonlocal done
            # Fused optimizers are called, and do nothing, on inf gradients.
            found_inf = getattr(optimizer, 'found_inf', None)
            if found_inf is not None and found_inf.item():
                return
            target.momentum = 1 - self._momentum_at(start, done, num_steps)
            model.update_target()
            done += 1

        self._handle = optimizer.register_step_post_hook(move_target)
        model.mark_target_driven()

    def detach(self) -> None:
        """Stop listening to the optimizer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _momentum_at(self, start: float, step: int, num_steps: int) -> float:
        """Give mu at an optimizer step, counted from 0."""
        if self.end_momentum is None:
            return start
        progress = min(step / max(num_steps - 1, 1), 1.)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.end_momentum - (self.end_momentum - start) * cosine
