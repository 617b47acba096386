"""Updates of the momentum target after each optimizer step."""
import math
from typing import Any, Optional

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...models import CMAE
from ...models.utils import check_momentum
from ..device import unwrapped_model


@HOOKS.register_module()
class TargetUpdateHook(Hook):
    r"""Update CMAE's target by an EMA step after each optimizer step.

    .. math::
        \theta_t \leftarrow \mu\,\theta_t + (1 - \mu)\,\theta_s

    A resumed run continues the cosine schedule; a run that starts from loaded
    weights starts it anew.

    The update is a hook of the optimizer, see ``MomentumTarget.follow``: it is
    skipped while gradients accumulate and when the loss scaler skips a step.
    An MAE (``head.contrastive=None``) and ``target.fixed=True`` have no
    updates, which is logged.

    Args:
        momentum (float, optional): Momentum mu, the weight of the old target
            in an update, in (0, 1). Defaults to None, the model's (0.996).
        end_momentum (float, optional): End of a cosine schedule of mu over
            the training's optimizer steps, in (0, 1]. Defaults to None, a
            constant mu.

    Raises:
        ValueError: If a momentum is out of range, or, before training, if the
            model is not a CMAE.
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
        self._handle: Optional[RemovableHandle] = None

    def before_train(self, runner) -> None:
        """Register the update with the optimizer."""
        model = unwrapped_model(runner)
        if not isinstance(model, CMAE):
            raise ValueError(
                'TargetUpdateHook updates the target of a CMAE, but '
                f'{type(model).__name__} has no target; remove the hook')
        if model.target is None or model.target.fixed:
            runner.logger.info(
                'TargetUpdateHook does nothing: ' +
                ('this is an MAE, which has no target'
                 if model.target is None else 'model.target.fixed=True'))
            return
        if runner.iter == 0:
            # Not the count of the checkpoint of load_from.
            model.target.steps.zero_()
        optim_wrapper = runner.optim_wrapper
        accumulate = optim_wrapper._accumulative_counts
        self.attach(
            model,
            optim_wrapper.optimizer,
            num_steps=math.ceil(runner.max_iters / accumulate))

    def after_train(self, runner) -> None:
        """Remove the update."""
        self.detach()

    def attach(self, model: CMAE, optimizer: Optimizer,
               num_steps: int) -> None:
        """Register the update of a model's target with an optimizer.

        The cosine schedule starts at the target's count of steps.

        Args:
            model (CMAE): A model with a target.
            optimizer (Optimizer): The optimizer that trains it.
            num_steps (int): Number of optimizer steps of the whole training,
                the length of the cosine.
        """
        target: Any = model.target
        start = target.momentum if self.momentum is None else self.momentum
        self._handle = target.follow(
            optimizer, model.backbone, model.neck.projector,
            lambda step: self._momentum_at(start, step, num_steps))

    def detach(self) -> None:
        """Remove the update."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _momentum_at(self, start: float, step: int, num_steps: int) -> float:
        """Return mu at an optimizer step, counted from 0."""
        if self.end_momentum is None:
            return start
        progress = min(step / max(num_steps - 1, 1), 1.)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.end_momentum - (self.end_momentum - start) * cosine
