"""mmengine's runner with exact resuming, strict loading and sharding."""
import copy
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseTTAModel, convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.registry import RUNNERS
from torch import nn

from ..checkpoints import CheckpointError, prefix_errors
from ..checkpoints.read import check_complete, ready_to_resume
from ..dependencies import name_of
from ..image_config import apply_image_stats
from ..models import CMAE
from .device import RunConfig, adapt_to_device, unwrapped_model, write_config
from .hooks.check_hooks import (check_loader, check_schedules,
                                check_target_moves)
from .hooks.checkpoint_hook import AtomicCheckpointHook
from .hooks.step_hooks import (PreemptionHook, ProgressHook, SkippedStepHook,
                               StepSeedHook, ignore_signals_in_workers)
from .loops import make_resumable, validation_pending
from .model_options import (check_can_shard, full_model_state,
                            full_optimizer_state, load_model_state,
                            load_optimizer_state, shard)
from .optim_wrapper import with_step_guard
from .resuming import (RESUME, START, TEST, check_template,
                       check_training_state, find_newest_complete, fit,
                       list_checkpoints, on_main_process)
from .vis_backends import add_log_backends

# In addition to mmengine's default hooks. A config can replace a hook, or
# remove it with `default_hooks=dict(progress=None)`.
DEFAULT_HOOKS = dict(
    step_seed=dict(type=StepSeedHook),
    skipped_step=dict(type=SkippedStepHook),
    preemption=dict(type=PreemptionHook),
    progress=dict(type=ProgressHook))

# First words of messages of mmengine and this project that go to the log file
# only.
_FILE_ONLY = (
    'Checkpoints will be saved', 'Config:', 'Distributed training is not used',
    'Exp name:', 'Hooks will be executed', 'Optimizer group of',
    'The optimizer uses')

# State of a schedule that a step or other settings change.
_CHANGING = ('base_values', 'last_step', 'verbose')


def _is_for_console(record: logging.LogRecord) -> bool:
    """Return whether a message is printed in addition to the log file."""
    message = record.getMessage()
    return not (message.startswith(_FILE_ONLY)
                or 'System environment:' in message
                or 'will be deprecated' in message)


def filter_console(logger: logging.Logger,
                   is_shown: Callable[[logging.LogRecord], bool]) -> None:
    """Write some messages of a logger to its file only.

    Args:
        logger (logging.Logger): The logger of a runner.
        is_shown (Callable): Whether a message is also printed.
    """
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_shown)


def _class_name(hook: Any) -> str:
    """Return the name of a hook's class, without its scope."""
    return name_of(hook.get('type') if isinstance(hook, dict) else type(hook))


def _fixed_settings(schedules: Any) -> list[dict[str, Any]]:
    """Return the settings in states of schedules that a step keeps."""
    return [{k: v for k, v in state.items()
             if k not in _CHANGING and not k.startswith('_')}
            for state in schedules or () if 'num_bad_epochs' not in state]


class _AlreadyFinished(Exception):
    """The resumed run has no steps left."""


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's ``Runner`` with exact resuming and strict loading.

    With ``resume=True`` a run resumes from the newest intact checkpoint in its
    folder; ``last_checkpoint`` is not read. A run without a checkpoint starts
    from ``load_from``. ``resume_from`` is a specific checkpoint to resume
    from.

    A checkpoint that does not fit the model raises an error before anything is
    loaded. ``load_partial=True`` loads the matching part of ``load_from``.

    The default hooks are mmengine's and ``step_seed``, ``skipped_step``,
    ``preemption`` and ``progress``. mmengine's training loops and its plain
    ``OptimWrapper`` are replaced by ``ResumableEpochLoop``,
    ``ResumableIterLoop`` and ``AutoAmpOptimWrapper`` in float32.
    """

    _resume: bool
    _has_loaded: bool
    _has_new_schedules = False

    @classmethod
    def from_cfg(cls, cfg: Any) -> 'ResumableRunner':
        """Build a runner, see ``Runner.from_cfg``.

        Settings from the config's ``image_stats`` file are filled in.

        Raises:
            ImageStatsError: If the file cannot be used.
            ImageStatsConflict: If a setting contradicts it.
        """
        apply_image_stats(cfg)
        if isinstance(cfg, Config):
            # Config.__setattr__ would store it as a setting.
            object.__setattr__(cfg, '__class__', RunConfig)
        return super().from_cfg(cfg)

    def build_logger(self, *args: Any, **kwargs: Any) -> Any:
        """Build a logger with a short console output and a full log file.

        File names that are not UTF-8 are escaped.
        """
        logger = super().build_logger(*args, **kwargs)
        filter_console(logger, _is_for_console)
        for handler in logger.handlers:
            stream: Any = getattr(handler, 'stream', None)
            if hasattr(stream, 'reconfigure'):
                stream.reconfigure(errors='backslashreplace')
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Build a visualizer for this run only.

        A ``name`` in the config is ignored. Otherwise two runs in one process
        would share the visualizer and log to the same folder.
        """
        if isinstance(visualizer, dict):
            visualizer = copy.copy(visualizer)
            visualizer.pop('name', None)
        return super().build_visualizer(visualizer)

    @master_only
    def dump_config(self) -> None:
        """Write the config to the work folder, see :func:`write_config`."""
        write_config(self.cfg, self.work_dir)

    def register_hooks(self,
                       default_hooks: dict | None = None,
                       custom_hooks: list | None = None) -> None:
        """Register hooks, see ``Runner.register_hooks``.

        Args:
            default_hooks (dict, optional): Hooks by name, which replace those
                of ``DEFAULT_HOOKS``; None removes a hook.
            custom_hooks (list, optional): More hooks. A hook of
                ``DEFAULT_HOOKS`` in this list is built only once.
        """
        custom = {_class_name(hook) for hook in custom_hooks or ()}
        merged = {**DEFAULT_HOOKS, **(default_hooks or {})}
        super().register_hooks({
            name: hook for name, hook in merged.items()
            if name not in DEFAULT_HOOKS or (
                hook is not None and _class_name(hook) not in custom)
        }, custom_hooks)

    def build_train_loop(self, loop: Any) -> Any:
        """Build a loop that can resume within an epoch.

        See ``Runner.build_train_loop``.

        Raises:
            ValueError: If there are fewer images than a batch, ranks have
                different numbers of batches, epochs have no end, or no hook
                updates a CMAE's target.
        """
        loop = super().build_train_loop(make_resumable(loop))
        check_loader(loop.dataloader, isinstance(loop, EpochBasedTrainLoop))
        check_target_moves(self)
        return loop

    @staticmethod
    def build_dataloader(dataloader: Any, seed: int | None = None,
                         **kwargs: Any) -> Any:
        """Build a data loader whose workers ignore stop signals.

        See ``Runner.build_dataloader``.
        """
        loader = Runner.build_dataloader(dataloader, seed, **kwargs)
        ignore_signals_in_workers(loader)
        return loader

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build an optimizer wrapper that skips non-finite steps.

        See ``Runner.build_optim_wrapper``.
        """
        return super().build_optim_wrapper(with_step_guard(optim_wrapper))

    def scale_lr(self,
                 optim_wrapper: OptimWrapper,
                 auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate to the batch of an optimizer step.

        Unlike mmengine's method, includes gradient accumulation.

        Args:
            optim_wrapper (OptimWrapper): The optimizer wrapper, whose
                parameter groups are changed.
            auto_scale_lr (dict, optional): ``base_batch_size``, the batch
                that the rate is for, and ``enable``. Defaults to None.
        """
        if not auto_scale_lr or not auto_scale_lr.get('enable', False):
            return
        batch = self.train_dataloader.batch_size
        accumulated = optim_wrapper._accumulative_counts
        total = batch * self.world_size * accumulated
        base = auto_scale_lr['base_batch_size']
        if total != base:
            self.logger.info(
                f'Learning rates are multiplied by {total / base:g}: a step '
                f'has {batch} images x {self.world_size} process(es) x '
                f'{accumulated} accumulated = {total}, the base is {base}.')
        for group in optim_wrapper.optimizer.param_groups:
            group['lr'] *= total / base

    def _init_model_weights(self) -> None:
        super()._init_model_weights()
        # Replaces mmengine's own, which train() would enable next.
        modules = self.cfg.pop('activation_checkpointing', None)
        if modules:
            from .model_options import checkpoint_activations
            count = checkpoint_activations(unwrapped_model(self), modules)
            self.logger.info(f'Activations of {count} modules are recomputed '
                             'in the backward pass to save memory.')

    def _maybe_compile(self, target: str) -> None:
        """Compile the training step of a CMAE in parts, of others as a whole.

        mmengine would compile all of ``train_step``, but checks and
        collectives of a CMAE would break it into many graphs.
        """
        model = unwrapped_model(self)
        options = self.cfg.get('compile')
        if target != 'train_step' or not isinstance(model, CMAE) or (
                options in (None, False)):
            return super()._maybe_compile(target)
        from .model_options import compile_parts
        compile_parts(model, **({} if options is True else options))
        self.logger.info('The training step is compiled: the first iteration '
                         'takes a minute or more.')

    def train(self) -> nn.Module:
        """Train, unless the run is already finished.

        Returns:
            nn.Module: The trained model.

        Raises:
            TrainingStopped: After SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C, when
                the state is saved.
        """
        preemption, progress = (
            self._hook(kind) or kind() for kind in (PreemptionHook,
                                                    ProgressHook))
        try:
            with preemption.signals.listening():
                return super().train()
        except _AlreadyFinished as finished:
            self.logger.info(str(finished))
            self.call_hook('after_run')
            return self.model
        finally:
            progress.close()

    def load_or_resume(self) -> None:
        """Resume from a checkpoint or load weights, if configured.

        Raises:
            CheckpointError: If the file, or each checkpoint of the folder, is
                damaged.
        """
        if self._has_loaded:
            return
        if self._trains():
            check_schedules(self)
        source = None
        if self._resume and self.cfg.get('resume_from'):
            source = self.cfg.resume_from
            if '://' not in source:
                on_main_process(check_complete, source)
        elif self._resume:
            source = self._find_newest()
        if source is not None:
            if self._load_from not in (None, source):
                self.logger.info(
                    f'load_from={self._load_from} is ignored: the run resumes '
                    'from its own checkpoint.')
            wanted = self._optimizer_settings()
            self.resume(source)
            self._adapt_to_batch()
            self._warn_of_kept_settings(wanted)
            self._end_if_finished(source)
        else:
            self._resume = False
            if self._load_from is not None:
                self.load_checkpoint(self._load_from)
        self._has_loaded = True

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a checkpoint, see ``Runner.resume``.

        Raises:
            CheckpointError: If it has no training state or does not fit.
        """
        self._resume = True  # for load_checkpoint and hooks
        with prefix_errors(filename):
            super().resume(filename, *args, **kwargs)

    def load_checkpoint(self, filename: str, map_location: Any = 'cpu',
                        **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, completely or not at all.

        A new training of a CMAE may also start from an encoder, an MAE or a
        released CMAE. Its target is then a copy of the online branch, and the
        log lists the new parts.

        Args:
            filename (str): A file, or any input of mmengine's
                ``CheckpointLoader``.
            map_location (str | Callable): See ``torch.load``. Defaults to
                'cpu'.
            **kwargs: mmengine's ``strict`` and ``revise_keys``, which have
                no effect: loading is strict, without the prefix ``module.``.

        Returns:
            dict[str, Any]: The checkpoint.

        Raises:
            CheckpointError: If it cannot be read, or does not fit.
        """
        purpose = (
            RESUME if self._resume else START if self._trains() else TEST)
        model = unwrapped_model(self)
        if isinstance(model, BaseTTAModel):
            model = model.module
        with prefix_errors(filename):
            checkpoint = ready_to_resume(
                CheckpointLoader.load_checkpoint(filename, map_location,
                                                 self.logger))
            if purpose == RESUME:
                check_training_state(checkpoint)
                if 'ema_state_dict' in checkpoint and not self._hook(EMAHook):
                    raise CheckpointError(
                        'its weights are averages of an EMAHook, which this '
                        'config does not have; add it to custom_hooks, or '
                        'start a new run from them with load_from')
                self._has_new_schedules = (
                    _fixed_settings(checkpoint.get('param_schedulers'))
                    != _fixed_settings([s.state_dict() for s in
                                        self.param_schedulers or ()]))
            state, lines, copy_target = fit(
                model, checkpoint, purpose,
                bool(self.cfg.get('load_partial', False)))
        checkpoint = (checkpoint if 'state_dict' in checkpoint else {})
        checkpoint['state_dict'] = state
        # Hooks may modify the state, as EMAHook does.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        load_model_state(model, checkpoint['state_dict'])
        if copy_target:
            model.reset_target()
        self._has_loaded = True
        self.logger.info('\n'.join(
            [f'Every key of {filename} was loaded.' if purpose != START else
             f'Loaded {filename}.', *lines]))
        return checkpoint

    def _trains(self) -> bool:
        """Return whether the runner is training, not testing."""
        return not isinstance(self._train_loop, (dict, type(None)))

    def _adapt_to_batch(self) -> None:
        """Adapt the position and learning rates to another epoch length.

        Learning rates are those of the config's schedule at the position,
        scaled to the batch if ``auto_scale_lr`` is enabled.
        """
        loop = self.train_loop
        now, former = loop.batch_numbers(), loop.former_batch_numbers()
        moved = loop.move_to_new_length()
        if now != former:
            images = [f'{step} images on {ranks} process(es)'
                      for step, _, ranks in (now, former)]
            self.logger.warning(
                'Resumed with another batch size: a step has '
                f'{images[0]}, but had {images[1]}. Batches contain other '
                'images, so losses differ from an uninterrupted run.')
        scale = 1.
        if (self.cfg.get('auto_scale_lr') or {}).get('enable'):
            scale = now[0] / former[0]
        if scale != 1:
            self.logger.info(f'Learning rates are multiplied by {scale:g}.')
        if self._has_new_schedules and not moved:
            self.logger.warning(
                'Resumed with another param_scheduler: the learning rate is '
                f'that of the new one after {self.iter} iterations.')
        if scale != 1 or moved or self._has_new_schedules:
            self._set_schedules(scale)

    def _set_schedules(self, scale: float) -> None:
        """Rebuild the schedules and step them to the current iteration."""
        for group in self.optim_wrapper.param_groups:
            group['initial_lr'] = scale * group.get('initial_lr', group['lr'])
            for name in [n for n in group if n.startswith('initial_')]:
                group[name[len('initial_'):]] = group[name]
        self.param_schedulers = self.build_param_scheduler(
            copy.deepcopy(self.cfg.get('param_scheduler') or []))
        length = len(self.train_dataloader)
        with warnings.catch_warnings():
            # Torch warns if a scheduler steps before the optimizer.
            warnings.simplefilter('ignore')
            for done in range(1, self.iter + 1):
                for scheduler in self.param_schedulers:
                    if not scheduler.by_epoch or done % length == 0:
                        scheduler.step()

    def _optimizer_settings(self) -> dict[str, Any]:
        """Return the largest values over all parameter groups."""
        groups = self.optim_wrapper.param_groups
        found = dict(
            lr=[g.get('initial_lr', g.get('lr')) for g in groups],
            weight_decay=[g.get('weight_decay', 0) for g in groups],
            betas=[g.get('betas', ()) for g in groups])
        return {name: max(values) for name, values in found.items()}

    def _warn_of_kept_settings(self, wanted: dict[str, Any]) -> None:
        kept = self._optimizer_settings()
        differ = [
            f'{k}={kept[k]} (the config has {v})' for k, v in wanted.items()
            if kept[k] != v and not (k == 'lr' and math.isclose(kept[k], v))]
        if differ:
            self.logger.warning(
                'The resumed run keeps its optimizer settings: '
                f'{", ".join(differ)}. To change them, start a new run with '
                'load_from.')

    def _find_newest(self) -> str | None:
        hook = self._hook(CheckpointHook)
        if hook is not None:
            check_template(hook.filename_tmpl)
        folder = (
            hook.folder(self)
            if isinstance(hook, AtomicCheckpointHook) else self.work_dir)

        def find() -> str | None:
            found = find_newest_complete(list_checkpoints(folder))
            return None if found is None else str(found)

        source = on_main_process(find)
        self.logger.info(
            f'No checkpoint in {folder} to resume from: starting a new run.'
            if source is None else f'Resuming from {source}.')
        return source

    def _end_if_finished(self, source: str) -> None:
        if self.iter < self.max_iters or validation_pending(self):
            return
        by_epoch = isinstance(self.train_loop, EpochBasedTrainLoop)
        done, total = ((f'{self.epoch} epochs', self.max_epochs) if by_epoch
                       else (f'{self.iter} iterations', self.max_iters))
        longer = 'max_epochs' if by_epoch else 'max_iters'
        raise _AlreadyFinished(
            f'This run is finished: {source} is the state after {done} of '
            f'{total}. To train longer, increase train_cfg.{longer} and the '
            'end of param_scheduler; to start a new run, use --no-resume or '
            'another folder.')

    def _hook(self, kind: type) -> Any:
        """Return the registered hook of a type, or None."""
        return next((h for h in self.hooks if isinstance(h, kind)), None)


@RUNNERS.register_module()
class ShardedRunner(ResumableRunner):
    """Runner that shards parameters, gradients and optimizer state (FSDP2).

    Selected by ``runner_type='mmpretrain.ShardedRunner'``. Each parameter is
    sharded by rows, in the target as in the online branch, so the moving
    average is exact and needs no communication. Rank 0 writes whole
    checkpoints as in an unsharded run. Both kinds of runs can resume from the
    other's checkpoints, on any number of ranks.

    The config's ``strategy`` is ``dict(type='FullyShardStrategy')``. With
    ``reshard_after_forward=False`` the parameters of a layer stay gathered
    from its forward to its backward pass, which needs more memory and less
    communication.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If no launcher started this process, the config has
            ``compile`` or another strategy, or training is in float16.
    """

    @classmethod
    def from_cfg(cls, cfg: Any) -> 'ResumableRunner':
        """Build a runner, see ``ResumableRunner.from_cfg``."""
        strategy = cfg.get('strategy') or {}
        unknown = strategy.keys() - {'type', 'reshard_after_forward'}
        kind = strategy.get('type', 'FullyShardStrategy')
        if kind != 'FullyShardStrategy' or unknown:
            raise ValueError(
                "ShardedRunner takes strategy=dict(type='FullyShardStrategy') "
                'with reshard_after_forward=True or False, but the config has '
                f'{strategy}; remove all other settings')
        if cfg.get('compile'):
            raise ValueError(
                'ShardedRunner does not support compile; remove the setting, '
                'or use the config without fsdp in its name')
        return super().from_cfg(cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None,
                   model: nn.Module) -> nn.Module:
        """Move the model to its device; it is sharded after initialization."""
        check_can_shard()
        model = model.to(get_device())
        sync_bn = self.cfg.get('sync_bn')
        return convert_sync_batchnorm(model, sync_bn) if sync_bn else model

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Initialise and shard the model, and build its optimizer wrapper.

        Raises:
            ValueError: If it trains in float16.
        """
        super()._init_model_weights()
        strategy = self.cfg.get('strategy') or {}
        shard(self.model, strategy.get('reshard_after_forward', True))
        built = super().build_optim_wrapper(optim_wrapper)
        scaler = getattr(built, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            raise ValueError(
                'FullyShardStrategy has no loss scaler for float16; set '
                "optim_wrapper.dtype='bfloat16' or 'float32'")
        return built

    def _init_model_weights(self) -> None:
        """Do nothing, since weights were initialised before sharding."""

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a whole checkpoint; all ranks must call it."""
        super().resume(filename, resume_optimizer=False, map_location='cpu')

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, see ``ResumableRunner.load_checkpoint``."""
        checkpoint = super().load_checkpoint(*args, **kwargs)
        if self._resume:
            load_optimizer_state(
                self.model, self.optim_wrapper, checkpoint['optimizer'])
        return checkpoint

    def save_checkpoint(self, *args: Any, save_optimizer: bool = True,
                        **kwargs: Any) -> None:
        """Save a whole checkpoint on rank 0; all ranks must call it.

        See ``Runner.save_checkpoint``.
        """
        whole: dict[str, Any] = dict(state_dict=full_model_state(self.model))
        if save_optimizer:
            whole['optimizer'] = full_optimizer_state(
                self.model, self.optim_wrapper)
        self._whole = whole
        super().save_checkpoint(*args, save_optimizer=False, **kwargs)
        del self._whole

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks, see ``Runner.call_hook``."""
        if fn_name == 'before_save_checkpoint':
            kwargs['checkpoint'].update(self._whole)
        super().call_hook(fn_name, **kwargs)


def build_runner(cfg: Config, log_to: Sequence[str] = ()) -> Runner:
    """Adapt a config to this machine, and build its runner.

    Args:
        cfg (Config): The config, changed in place.
        log_to (Sequence[str]): See :func:`add_log_backends`. Defaults to
            none.

    Returns:
        Runner: Of the config's ``runner_type``, by default a
        ``ResumableRunner``.
    """
    add_log_backends(cfg, log_to)
    adapt_to_device(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else (
        ResumableRunner.from_cfg(cfg))
