"""Checkpoints that a crash cannot damage."""
import inspect
from collections import deque
from functools import partial
from pathlib import Path
from typing import Dict, Optional, Tuple

from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    is_main_process,
)
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ...checkpoints import CheckpointError, encoder_facts, to_plain
from ...files import remove_temporaries, write_file
from ...image_config import image_settings
from ...models.utils import is_sharded
from ..atomic_files import WRITER, CheckpointBackend
from ..checkpoint_folder import NameTemplate, list_checkpoints, move_aside
from ..device import unwrapped_model
from ..training_state import (
    all_finite,
    at_optimizer_step,
    describe_batch,
    note_pending_validation,
    validation_pending,
)

# What the message hub knows of files, besides keep_ckpt_ids.
_PATHS = ('last_ckpt', 'best_ckpt')


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic writes.

    - A checkpoint is renamed to its final name when it is on disk. The
      checkpoints that it replaces (``max_keep_ckpts``, ``save_best``) are
      removed after that.
    - Training continues while a thread writes; the next save waits for it.
    - Checkpoints are saved between optimizer steps, since no checkpoint
      contains accumulated gradients.
    - Parameters that are not finite are not saved.
    - Checkpoints of an earlier run in the folder, ahead of the first
      iteration, are moved to its sub-folder ``previous_<N>``.
    - ``last_checkpoint`` and the paths in a checkpoint are names relative to
      its folder, which may be moved.

    Args:
        async_save (bool): Whether to write in a thread. Rank 0 then holds one
            serialised checkpoint in memory. Defaults to True.
        **kwargs: Arguments of ``CheckpointHook``.

    Raises:
        ValueError: If the files are not to be written to a local folder.
        CheckpointError: In training, if a file cannot be written.
    """

    def __init__(self,
                 *args,
                 async_save: bool = True,
                 **kwargs) -> None:
        unknown = set(kwargs) - set(
            inspect.signature(CheckpointHook.__init__).parameters)
        if unknown:  # mmengine would fail at the first save
            name = sorted(unknown)[0]
            raise TypeError(f'{type(self).__name__}.__init__() got an '
                            f'unexpected keyword argument {name!r}')
        super().__init__(*args, **kwargs)
        if (self.backend_args or self.file_client_args
                or '://' in str(self.out_dir or '')):
            raise ValueError(
                'AtomicCheckpointHook writes into local folders; for '
                'backend_args or a remote out_dir set '
                "default_hooks.checkpoint.type='mmengine.CheckpointHook'")
        self.filename_tmpl = NameTemplate(self.filename_tmpl)
        self.async_save = async_save
        self._root = self.out_dir
        self._finite = True
        self._deferred: Optional[int] = None
        self._loaded: Dict = {}
        # Iteration of this process's last checkpoint, and whether validation
        # is due after it.
        self._saved: Optional[Tuple[int, bool]] = None

    def folder(self, runner) -> str:
        """Return the folder of a runner's checkpoints."""
        if self._root is None or str(self._root) == runner.work_dir:
            return runner.work_dir
        return str(Path(self._root) / Path(runner.work_dir).name)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the metadata of the resumed run."""
        self._loaded = checkpoint.get('meta') or {}

    def before_train(self, runner) -> None:
        """Find the kept checkpoints; move those of an earlier run."""
        folder = self.folder(runner)
        self.out_dir, self.backend_args = self._root, None
        hub = runner.message_hub
        for key, value in list(hub.runtime_info.items()):
            if key.startswith(_PATHS) and isinstance(value, str):
                hub.update_info(key, str(Path(folder) / Path(value).name))
        if is_main_process():
            remove_temporaries(folder)
            self._make_way(runner, folder)
        super().before_train(runner)
        self.file_backend = CheckpointBackend()
        self.backend_args = dict(backend='CheckpointBackend')
        self._saved = self._deferred = None
        if runner.iter > 0:
            self._compare_settings(runner)

    def _make_way(self, runner, folder: str) -> None:
        ahead = [
            saved.path for saved in list_checkpoints(
                folder, self.filename_tmpl, self.by_epoch)
            if saved.position > ((runner.epoch, runner.iter) if saved.by_epoch
                                 else (runner.iter, 0))
        ]
        if runner.iter == 0:
            suffix = Path(self.filename_tmpl).suffix
            ahead += sorted(Path(folder).glob(f'best_*{suffix}'))
        if ahead:
            aside = move_aside(ahead)
            runner.logger.warning(
                f'{len(ahead)} checkpoints of an earlier run are now in '
                f'{aside}, as this one begins at iteration {runner.iter}')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add facts of batch and encoder; store names and plain values."""
        checkpoint['meta'].update(
            describe_batch(runner),
            **encoder_facts(unwrapped_model(runner),
                            image_settings(runner.cfg)))
        info = checkpoint['message_hub']['runtime_info']
        for key, value in info.items():
            if key.startswith(_PATHS) and isinstance(value, str):
                info[key] = Path(value).name
        checkpoint['message_hub'] = to_plain(checkpoint['message_hub'])

    def _compare_settings(self, runner) -> None:
        now = describe_batch(runner)
        changed = [
            f'{name} {self._loaded[name]} -> {value}'
            for name, value in now.items()
            if self._loaded.get(name, value) != value
        ]
        if changed:
            runner.logger.warning(
                f"Resumed with another batch ({', '.join(changed)}): weights, "
                'optimizer and schedule are those of the checkpoint, but '
                'batches consist of other images, and so losses differ.')

    def after_train_iter(self, runner, batch_idx: int, *args,
                         **kwargs) -> None:
        """Save a checkpoint that is due, after an optimizer step."""
        if self._deferred is not None and at_optimizer_step(runner):
            step = self._deferred if self.by_epoch else runner.iter + 1
            self._save_checkpoint_with_step(
                runner, step, dict(epoch=runner.epoch, iter=runner.iter + 1))
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def after_train(self, runner) -> None:
        """Wait until all files are on disk."""
        if self._deferred is not None:  # stopped early, by another hook
            self.save_now(runner, runner.epoch, runner.iter)
        self._settle(runner)
        super().after_train(runner)
        self._settle(runner)

    def save_now(self,
                 runner,
                 epoch: int,
                 iteration: int,
                 within_epoch: bool = False) -> Optional[str]:
        """Save at once, and wait until it is on disk.

        Args:
            runner (Runner): The runner, in training.
            epoch (int): Number of finished epochs.
            iteration (int): Number of finished iterations.
            within_epoch (bool): Whether some of these iterations belong to the
                next epoch; the file is then
                ``epoch_<epoch>_iter_<iteration>.pth``. Defaults to False.

        Returns:
            str: The file; None if parameters were not finite.
        """
        if self._saved != (iteration, validation_pending(runner)):
            step = epoch if self.by_epoch else iteration
            if self.by_epoch and within_epoch:
                step = f'{epoch}_iter_{iteration}'
            self._save_checkpoint_with_step(
                runner, step, dict(epoch=epoch, iter=iteration), force=True)
        self._settle(runner)
        saved = self._saved is not None and self._saved[0] == iteration
        return self.last_ckpt if saved else None

    def _save_checkpoint_with_step(self, runner, step, meta,
                                   force: bool = False) -> None:
        if not force and not at_optimizer_step(runner):
            self._deferred = step
            return
        self._settle(runner)
        self._deferred = None
        if not self._parameters_are_finite(runner):
            return
        hub, replaced = runner.message_hub, []
        if self.max_keep_ckpts > 0:
            ids = [i for i in self.keep_ckpt_ids if i != step] + [step]
            replaced = ids[:-self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(ids[-self.max_keep_ckpts:])
            # With those that are removed when this one is on disk: a run
            # killed in between removes them when it is resumed.
            hub.update_info('keep_ckpt_ids', ids)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        hub.update_info('last_ckpt', self.last_ckpt)
        self._saved = meta['iter'], validation_pending(runner)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if is_main_process():
            pointer = Path(runner.work_dir) / 'last_checkpoint'
            # mmengine's own runner takes the content as a path.
            finds_itself = (
                type(runner).load_or_resume is not Runner.load_or_resume)
            content = name if finds_itself else str(
                Path(self.last_ckpt).absolute())
            WRITER.then(
                partial(write_file, pointer, content.encode()), pointer)
            for old in replaced:
                path = Path(self.out_dir) / self.filename_tmpl.format(old)
                WRITER.then(partial(path.unlink, missing_ok=True), path)
        if not self.async_save:
            self._settle(runner)

    def after_val_epoch(self, runner, metrics) -> None:
        """Save the best checkpoint."""
        note_pending_validation(runner, False)
        super().after_val_epoch(runner, metrics)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not self.save_best:
            return
        self._settle(runner)
        if not self._parameters_are_finite(runner):
            return
        super()._save_best_checkpoint(runner, metrics)
        best = [
            value for key, value in runner.message_hub.runtime_info.items()
            if key.startswith('best_ckpt')
        ]
        for path in self.file_backend.take_removals():
            if path not in best:
                WRITER.then(partial(Path(path).unlink, missing_ok=True))
        if not self.async_save:
            self._settle(runner)

    def _publish_model(self, runner, ckpt_path: str) -> None:
        self._settle(runner)
        super()._publish_model(runner, ckpt_path)

    def _settle(self, runner) -> None:
        """Wait for the last save; all ranks raise if it has failed."""
        problem = [WRITER.take_problem() if is_main_process() else None]
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise CheckpointError(problem[0])

    def _parameters_are_finite(self, runner) -> bool:
        model = unwrapped_model(runner)
        asked = is_main_process() or is_sharded(model)
        answers = all_gather_object(all_finite(model) if asked else True)
        if self._finite and not all(answers):
            runner.logger.warning(
                f'Parameters are not finite at iteration {runner.iter}: they '
                'are not saved, and the checkpoints before them are kept.')
        self._finite = all(answers)
        return self._finite
