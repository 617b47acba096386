"""Exact resuming and strict loading, for mmengine's runners."""
import math
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

from mmengine.hooks import CheckpointHook
from mmengine.model import BaseTTAModel
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..checkpoints import CheckpointError
from ..checkpoints.read import ready_to_resume
from ..image_config import apply_image_stats
from .atomic_files import WRITER
from .checkpoint_folder import (
    check_named,
    find_newest_whole,
    list_checkpoints,
    on_main_process,
)
from .device import unwrapped_model
from .hooks import (
    AtomicCheckpointHook,
    PreemptionHook,
    ProgressHook,
    SkippedStepHook,
    StepSeedHook,
)
from .loading import RESUME, START, TEST, check_training_state, fit
from .loops import resumable
from .run_checks import (
    check_one_batch,
    check_ranks_agree,
    check_target_moves,
)
from .sharding import load_model_state
from .stop_signals import shield_workers
from .training_state import validation_pending
from .work_dir import WritesConfig


class _AlreadyFinished(Exception):
    """The resumed run has no step left."""


class Resuming(WritesConfig):
    """A mixin for mmengine's runners with exact resuming and strict loading.

    With ``resume=True`` a run resumes from the newest intact checkpoint in its
    folder; ``last_checkpoint`` is not read. A run without a checkpoint starts
    from ``load_from``. ``resume_from`` names a certain checkpoint to resume
    from.

    A checkpoint that does not fit the model is refused before anything is
    loaded. ``load_partial=True`` loads the fitting part of ``load_from``.
    """

    @classmethod
    def from_cfg(cls, cfg):
        """Build a runner, see ``Runner.from_cfg``.

        Settings from the config's ``image_stats`` file are filled in.

        Raises:
            ImageStatsError: If the file cannot be used.
            ImageStatsConflict: If a setting contradicts it.
        """
        apply_image_stats(cfg)
        return super().from_cfg(cfg)

    def build_train_loop(self, loop):
        """Build a loop that can resume within an epoch.

        See ``Runner.build_train_loop``; mmengine's two loops are replaced by
        ``ResumableEpochLoop`` and ``ResumableIterLoop``.

        Raises:
            ValueError: If the data do not fill a batch, ranks have different
                numbers of batches, or no hook updates a CMAE's target.
        """
        loop = super().build_train_loop(resumable(loop))
        check_ranks_agree(loop.dataloader)
        check_one_batch(loop.dataloader)
        check_target_moves(self)
        return loop

    @staticmethod
    def build_dataloader(dataloader, seed: Optional[int] = None, **kwargs):
        """Build a data loader whose workers ignore stop signals.

        See ``Runner.build_dataloader``.
        """
        loader = Runner.build_dataloader(dataloader, seed, **kwargs)
        shield_workers(loader)
        return loader

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        """Register the config's hooks and the hooks that every run needs.

        See ``Runner.register_hooks``.
        """
        super().register_hooks(default_hooks, custom_hooks)
        for needed in (PreemptionHook, StepSeedHook, SkippedStepHook,
                       ProgressHook):
            if not any(isinstance(hook, needed) for hook in self.hooks):
                self.register_hook(needed())

    def train(self) -> nn.Module:
        """Train, unless the run is already finished.

        Returns:
            nn.Module: The trained model.

        Raises:
            TrainingStopped: After SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C, when
                all is saved.
        """
        signals = self._hook(PreemptionHook).signals
        try:
            with signals.listening():
                return super().train()
        except _AlreadyFinished as finished:
            self.logger.info(str(finished))
            self.call_hook('after_run')
            return self.model
        except Exception:
            problem = WRITER.take_problem()
            if problem is not None:
                self.logger.warning(problem)
            raise
        finally:
            self._hook(ProgressHook).close()

    def load_or_resume(self) -> None:
        """Resume from a checkpoint, or load weights, if there are any.

        Raises:
            CheckpointError: If the file, or each checkpoint of the folder, is
                damaged.
        """
        if self._has_loaded:
            return
        source = None
        if self._resume and self.cfg.get('resume_from'):
            source = self.cfg.resume_from
            on_main_process(check_named, source, *self._names())
        elif self._resume:
            source = self._find_newest()
        if source is not None:
            if self._load_from not in (None, source):
                self.logger.info(f'load_from={self._load_from} is what this '
                                 'run began with; it goes on from its own '
                                 'checkpoint')
            wanted = self._optimizer_settings()
            self.resume(source)
            self._scale_rates()
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
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(self,
                        filename: str,
                        map_location: Union[str, Callable] = 'cpu',
                        strict: bool = True,
                        revise_keys: Sequence[Tuple[str, str]] = (
                            (r'^module\.', ''), )) -> Dict[str, Any]:
        """Load a checkpoint that fits the model, or nothing.

        A CMAE that starts a training may take an encoder, an MAE or a
        released CMAE as well; its target then starts as a copy of the online
        branch, and the log says what is new.

        Args:
            filename (str): A file, or anything that mmengine's
                ``CheckpointLoader`` takes.
            map_location (str | Callable): See ``torch.load``. Defaults to
                'cpu'.
            strict (bool): Not used: loading is always strict.
            revise_keys (Sequence[Tuple[str, str]]): Patterns that are
                replaced in names. Defaults to taking off ``module.``.

        Returns:
            Dict[str, Any]: The checkpoint.

        Raises:
            CheckpointError: If it cannot be read, or does not fit.
        """
        trains = not isinstance(self._train_loop, (dict, type(None)))
        purpose = RESUME if self._resume else START if trains else TEST
        model = unwrapped_model(self)
        if isinstance(model, BaseTTAModel):
            model = model.module
        try:
            checkpoint = ready_to_resume(
                CheckpointLoader.load_checkpoint(filename, map_location,
                                                 self.logger))
            if purpose == RESUME:
                check_training_state(checkpoint)
            state, lines, copy_target = fit(
                model, checkpoint, purpose, revise_keys,
                bool(self.cfg.get('load_partial', False)))
        except FileNotFoundError as error:
            raise CheckpointError(str(error)) from None
        except CheckpointError as error:
            text = str(error)
            named = str(filename) in text.split('\n')[0]
            raise CheckpointError(
                text if named else f'{filename}: {text}') from None
        checkpoint = (checkpoint if 'state_dict' in checkpoint else {})
        checkpoint['state_dict'] = state
        # Hooks may take the state apart, as EMAHook does.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        load_model_state(model, checkpoint['state_dict'])
        if copy_target:
            model.reset_target()
        self._has_loaded = True
        self.logger.info('\n'.join(
            [f'Every key of {filename} was loaded.' if purpose != START else
             f'Loaded {filename}.', *lines]))
        return checkpoint

    def _optimizer_settings(self) -> Dict[str, Any]:
        groups = getattr(self.optim_wrapper, 'param_groups', None) or [{}]
        first = groups[0]
        settings = {k: first.get(k) for k in ('weight_decay', 'betas')}
        return dict(lr=first.get('initial_lr', first.get('lr')), **settings)

    def _scale_rates(self) -> None:
        """Scale the resumed learning rates to the batch, if it has changed."""
        now = self.train_loop.samples_per_step()
        former = self.message_hub.runtime_info.get('samples_per_step', now)
        enabled = (self.cfg.get('auto_scale_lr') or {}).get('enable')
        if now == former or not enabled or isinstance(
                self.param_schedulers, dict):  # of several optimizers
            return
        for group in self.optim_wrapper.param_groups:
            for name in group.keys() & {'lr', 'initial_lr'}:
                group[name] *= now / former
        for scheduler in self.param_schedulers or ():
            if scheduler.param_name == 'lr':
                scheduler.base_values = [
                    value * now / former for value in scheduler.base_values]
        self.logger.info(
            f'Learning rates are multiplied by {now / former:g}: a step has '
            f'{now} images, but had {former}.')

    def _warn_of_kept_settings(self, wanted: Dict[str, Any]) -> None:
        kept = self._optimizer_settings()
        differ = [
            f'{k}={kept[k]} (the config has {v})' for k, v in wanted.items()
            if kept[k] != v and not (k == 'lr' and math.isclose(kept[k], v))]
        if differ:
            self.logger.warning(
                'A resumed run keeps the optimizer settings it was started '
                f'with: {", ".join(differ)}. To change them start a new run, '
                'with load_from for its weights.')

    def _names(self) -> Tuple[Any, ...]:
        """Return the template of checkpoints' names and what they count."""
        hook = self._hook(CheckpointHook)
        return () if hook is None else (hook.filename_tmpl, hook.by_epoch)

    def _find_newest(self) -> Optional[str]:
        hook = self._hook(CheckpointHook)
        folder = (
            hook.folder(self)
            if isinstance(hook, AtomicCheckpointHook) else self.work_dir)

        def find() -> Optional[str]:
            found = find_newest_whole(list_checkpoints(folder, *self._names()))
            return None if found is None else str(found)

        source = on_main_process(find)
        self.logger.info(f'No checkpoint in {folder} to go on from: this is a '
                         'new run.' if source is None else
                         f'Going on from {source}.')
        return source

    def _end_if_finished(self, source: str) -> None:
        by_epoch = isinstance(self.train_loop, EpochBasedTrainLoop)
        done = self.iter >= self.max_iters
        if by_epoch:
            # Another batch may have had another epoch length.
            info = self.message_hub.runtime_info
            former = (info.get('max_iters') or self.max_iters) // (
                info.get('max_epochs') or self.max_epochs)
            done = self.epoch >= self.max_epochs or (
                self.iter >= self.max_epochs * former)
        if done and not validation_pending(self):
            total = (f'{self.max_epochs} epochs'
                     if by_epoch else f'{self.max_iters} iterations')
            longer = 'max_epochs' if by_epoch else 'max_iters'
            raise _AlreadyFinished(
                f'This run is finished: {source} is the state after all '
                f'{total}. To train longer increase train_cfg.{longer}; to '
                'start a new run use --no-resume or another folder.')

    def _hook(self, kind: type):
        """Return the registered hook of a type, None if there is none."""
        return next((h for h in self.hooks if isinstance(h, kind)), None)
