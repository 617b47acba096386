"""Health values of a pre-training, measured during training."""
from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ...evaluation.health import (WINDOW, HealthWarning, effective_rank,
                                  positive_ranks, spread, warn)
from ...models import CMAE
from ...models.utils import is_sharded, keep_step_hooks
from ..device import host_memory_mb, unwrapped_model
from ..loops import at_optimizer_step
from ..optim_wrapper import grad_norm, part_norms

# Measured features.
ONLINE, TARGET = 'online', 'target'
PREDICTION, PROJECTION = 'prediction', 'projection'
# Logged scalars used for warnings.
_LOGGED = ('loss', 'loss_rc', 'loss_ct', 'rho_pos', 'rho_neg', 'acc_ct', 'lr')
_KEPT = 100
_MB = 2**20


@HOOKS.register_module()
class HealthHook(Hook):
    """Measure the health of a pre-training on its batches.

    It uses the features and gradients of the training step and does not change
    the training or its random numbers. All values go to the visualisation back
    ends as ``health/...``. ``erank``, the effective rank of the target's
    features (without a target, of the online features), is also in the log
    line. Each kind of warning is logged once. docs/health.md explains values
    and warnings.

    ===============================  =========================================
    figure                           what it is
    ===============================  =========================================
    ``positive_rank``                mean place of an image's own target among
                                     those of the batch over all GPUs, 1 is
                                     the nearest; ``targets`` is their number
    ``erank_*``, ``spread_*``        see :func:`effective_rank` and
                                     :func:`spread`, on the batch of the first
                                     process: of ``online`` features, the
                                     means of the visible tokens; of
                                     ``target`` features z_t; of predictions
                                     y_s^p and of target projections z_t^p
    ``grad/<part>``                  gradient norm of a part of the model, as
                                     the optimizer gets it: clipped, if it is
    ``target_distance``              distance of target and online parameters,
                                     relative to the norm of the latter
    ``data_wait``                    share of the time, in percent, in which a
                                     step waits for its data
    ``images_per_second``            of all processes
    ``host_memory_mb``,              highest use so far, of the first process
    ``device_memory_mb``             without its data workers
    ``hours_left``, ``images_seen``  of the training
    ===============================  =========================================

    Args:
        interval (int, optional): Number of iterations between measurements,
            which also include the first iteration. With gradient accumulation
            it waits for the optimizer step. Defaults to None, the interval of
            the log.

    Raises:
        ValueError: If the interval is not positive, or, before training, if
            the model is not a CMAE.
    """

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval must be 1 or more, but got {interval}')
        self.interval = interval
        self._handles: list = []

    def before_train(self, runner) -> None:
        """Register hooks on the model and its optimizer."""
        model = unwrapped_model(runner)
        if not isinstance(model, CMAE):
            raise ValueError(
                'HealthHook measures the pre-training of a CMAE, but the '
                f'model is a {type(model).__name__}; remove the hook')
        self.every = self.interval or next(
            (h.interval for h in runner.hooks if isinstance(h, LoggerHook)),
            100)
        self._pending = False
        self._seen: dict[str, Tensor] = {}
        self._grads: dict[str, Tensor] = {}
        self._last: int | None = None
        self._rows: list[dict[str, float]] = []
        self._warnings: dict[str, HealthWarning] = {}
        self._listen(model)
        optimizer = runner.optim_wrapper.optimizer
        keep_step_hooks(optimizer)
        self._handles.append(optimizer.register_step_pre_hook(
            lambda *_: self._measure_gradients(model)))

    def _listen(self, model: CMAE) -> None:
        """Store the features of both branches until the end of a step."""

        def note(module, name: str, value: Tensor) -> None:
            if module.training:
                self._seen[name] = value.detach()

        extra = model.backbone.num_extra_tokens

        def note_online(module, args, out: tuple[Tensor, ...]) -> None:
            feature = out[0][:, extra:].mean(dim=1)
            if ONLINE in self._seen:  # of another micro-batch
                feature = torch.cat([self._seen[ONLINE], feature.detach()])
            note(module, ONLINE, feature)

        self._handles = [model.backbone.register_forward_hook(note_online)]
        if model.target is None:
            return
        projector = model.target.projector
        self._handles += [
            projector.register_forward_pre_hook(
                lambda module, args: note(module, TARGET, args[0][-1])),
            projector.register_forward_hook(
                lambda module, args, out: note(module, PROJECTION, out[0])),
            model.head.contrastive.predictor.register_forward_hook(
                lambda module, args, out: note(module, PREDICTION, out[0])),
        ]

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Decide whether to measure this step."""
        self._pending |= runner.iter == 0 or self.every_n_train_iters(
            runner, self.every)

    @torch.no_grad()
    def _measure_gradients(self, model: CMAE) -> None:
        # The norm of sharded gradients needs all ranks.
        if not self._pending or not (is_main_process() or is_sharded(model)):
            return
        self._grads = part_norms(model)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Measure and log."""
        if self._pending and at_optimizer_step(runner):
            self._pending = False
            targets = self._seen.get(PROJECTION)
            if targets is not None:  # of all processes
                targets = torch.cat(all_gather(targets), dim=0)
            model = unwrapped_model(runner)
            distance = None
            if targets is not None and (is_main_process()
                                        or is_sharded(model)):
                distance = target_distance(model)
            if is_main_process():
                self._report(runner, targets, distance)
        self._seen.clear()

    @torch.no_grad()
    def _report(self, runner, targets: Tensor | None,
                distance: Tensor | None) -> None:
        figures: dict[str, Tensor] = {}
        if targets is not None:
            predictions = self._seen[PREDICTION]
            # The backward pass recomputes micro-batches.
            self._seen[ONLINE] = self._seen[ONLINE][:len(predictions)]
            figures['positive_rank'] = positive_ranks(
                predictions, targets,
                len(predictions) * get_rank()).double().mean()
            figures['target_distance'] = distance
        for name, features in self._seen.items():
            figures[f'erank_{name}'] = effective_rank(features)
            figures[f'spread_{name}'] = spread(features)
        figures.update({f'grad/{k}': v for k, v in self._grads.items()})
        # One synchronisation with the device for all values.
        values = torch.stack([v.double() for v in figures.values()]).tolist()
        scalars = dict(zip(figures, values))
        if targets is not None:
            scalars['targets'] = len(targets)
        scalars.update(self._measure_costs(
            runner, len(self._seen[ONLINE]) * get_world_size()))
        self._grads = {}
        hub = runner.message_hub
        hub.update_scalar(
            'train/erank',
            scalars[f'erank_{TARGET if targets is not None else ONLINE}'])
        row = {'iter': runner.iter + 1,
               **{f'health/{name}': v for name, v in scalars.items()}}
        runner.visualizer.add_scalars(row, step=runner.iter + 1)
        self._warn(runner, row)

    def _measure_costs(self, runner: Runner, batch: int) -> dict[str, float]:
        """Measure time and memory."""
        done = runner.iter + 1
        steps = 1 if self._last is None else max(done - self._last, 1)
        self._last = done
        logged = runner.message_hub.log_scalars
        found = dict(images_seen=done * batch, host_memory_mb=host_memory_mb())
        if 'train/time' in logged and 'train/data_time' in logged:
            time = float(logged['train/time'].mean(steps))
            wait = float(logged['train/data_time'].mean(steps))
            if time > 0:
                found['data_wait'] = 100 * min(wait / time, 1.)
                found['images_per_second'] = batch / time
        left = runner.message_hub.runtime_info.get('eta')
        if left is not None:
            found['hours_left'] = left / 3600
        if torch.cuda.is_available():
            found['device_memory_mb'] = torch.cuda.max_memory_allocated() / _MB
        return found

    def _warn(self, runner, row: dict[str, float]) -> None:
        """Log each warning once."""
        logged = runner.message_hub.log_scalars
        self._rows.append({
            **{name: float(logged[f'train/{name}'].current())
               for name in _LOGGED if f'train/{name}' in logged}, **row})
        del self._rows[WINDOW:-_KEPT]  # rules use the first and the last value
        holding = warn(self._rows, self._warnings)
        for name, warning in holding.items():
            if name not in self._warnings:
                runner.logger.warning(f'Health: {warning.text}.')
        self._warnings.update(holding)

    def after_train(self, runner) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


@torch.no_grad()
def target_distance(model: CMAE) -> Tensor:
    """Compute the distance of target and online parameters.

    Args:
        model (CMAE): A model with a target.

    Returns:
        Tensor: Norm of the difference of averaged parameters, relative to the
        norm of the online parameters; a scalar.
    """
    differences, sources = [], []
    target: Any = model.target
    for own, online in ((target.encoder, model.backbone),
                        (target.projector, model.neck.projector)):
        source = dict(online.named_parameters())
        for name, average in own.named_parameters():
            if source[name].requires_grad:
                sources.append(source[name])
                differences.append(average)
    differences = torch._foreach_sub(differences, sources)
    return grad_norm(differences) / grad_norm(sources).clamp(min=1e-30)
