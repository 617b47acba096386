"""Atomic saving of checkpoints."""
import errno
import inspect
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.dist import (all_gather_object, broadcast_object_list,
                           get_world_size, is_main_process)
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import HOOKS
from torch import nn

from ...checkpoints import CheckpointError, encoder_record, to_plain
from ...files import output_error, remove_file, remove_temporaries, write_file
from ...image_config import image_settings
from ...models.utils import is_sharded, local_shard
from ..device import unwrapped_model
from ..loops import (at_optimizer_step, set_validation_pending,
                     validation_pending)
from ..resuming import (check_template, checkpoint_folder, list_checkpoints,
                        move_to_previous)

# Entries of the message hub with paths, in addition to keep_ckpt_ids.
_PATHS = ('last_ckpt', 'best_ckpt')


def describe_failure(error: OSError, path: Path, size: int) -> str:
    """Describe a failed write in one sentence.

    Args:
        error (OSError): The error.
        path (Path): The file.
        size (int): Size of the file in bytes.

    Returns:
        str: The failure and a solution.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = (f'free {max(size / 2**20, 0.1):.1f} MB or more on the disk '
                  f'of {path.parent}, or name another folder')
    else:
        advice = f'check that files can be written in {path.parent}'
    return (f'{path} {output_error(path, error).strerror}; {advice}; the '
            'earlier checkpoints are intact')


@register_backend('CheckpointBackend', force=True)
class CheckpointBackend(LocalBackend):
    """mmengine's backend of local files with atomic writes.

    Files are removed after the next file, their replacement, is written. After
    a failure nothing is written or removed until :meth:`pop_problem`.
    """

    removed: ClassVar[list[str]] = []
    problem: ClassVar[str | None] = None

    @classmethod
    def attempt(cls, action: Callable[..., Any], path: Path, *args: Any,
                size: int = 0) -> None:
        """Call a function of a path, and store the description of a failure.

        Args:
            action (Callable): The function.
            path (Path): Its first argument.
            *args (Any): Its other arguments.
            size (int): Size of the file in bytes. Defaults to 0.
        """
        if cls.problem is None:
            try:
                action(path, *args)
            except OSError as error:
                cls.problem = describe_failure(error, path, size)

    @classmethod
    def pop_problem(cls) -> str | None:
        """Return the description of a failure once, None without failures."""
        problem, cls.problem = cls.problem, None
        return problem

    def put(self, obj: bytes, filepath: Any) -> None:
        """Write a file; then delete replaced files."""
        self.attempt(write_file, Path(filepath), obj, size=len(obj))
        for path in map(Path, self.removed):
            if path != Path(filepath):
                self.attempt(remove_file, path)
        self.removed.clear()

    def remove(self, filepath: Any) -> None:
        """Delete a file after the next one is written."""
        self.removed.append(str(filepath))


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic writes.

    - A checkpoint gets its final name when it is on disk. Replaced checkpoints
      (``max_keep_ckpts``, ``save_best``) are removed after that.
    - Checkpoints are saved between optimizer steps, since they do not contain
      accumulated gradients.
    - Checkpoints with non-finite parameters are not saved.
    - Checkpoints of an earlier run that are ahead of the first iteration are
      moved to the sub-folder ``previous_<N>``.
    - Paths in a checkpoint are relative, so the folder may be moved.

    Args:
        **kwargs: Arguments of ``CheckpointHook``.

    Raises:
        ValueError: If the folder is not local, or ``filename_tmpl`` is not
            mmengine's default.
        CheckpointError: In training, if a file cannot be written.
    """

    out_dir: Any
    backend_args: Any
    filename_tmpl: Any
    keep_ckpt_ids: Any

    def __init__(self, *args, **kwargs) -> None:
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
        check_template(self.filename_tmpl)
        self._root = self.out_dir and os.path.expanduser(self.out_dir)
        self._finite = True
        self._deferred: int | None = None
        # Iteration of this process's last checkpoint, and whether validation
        # is due after it.
        self._saved: tuple[int, bool] | None = None

    def folder(self, runner) -> str:
        """Return the folder of a runner's checkpoints."""
        return checkpoint_folder(self._root, runner.work_dir)

    def before_train(self, runner) -> None:
        """Find saved checkpoints; move those of an earlier run."""
        folder = self.folder(runner)
        if self.save_best and runner.val_loop is None:
            runner.logger.warning('save_best has no effect: the config has no '
                                  'validation.')
        self.out_dir, self.backend_args = self._root, None
        hub = runner.message_hub
        for key, value in list(hub.runtime_info.items()):
            if key.startswith(_PATHS) and isinstance(value, str):
                hub.update_info(key, str(Path(folder) / Path(value).name))
        if is_main_process():
            remove_temporaries(folder)
            self._move_earlier_run(runner, folder)
        super().before_train(runner)
        self.file_backend = CheckpointBackend()
        self.backend_args = dict(backend='CheckpointBackend')
        self._saved = self._deferred = None

    def _move_earlier_run(self, runner, folder: str) -> None:
        ahead = [
            saved.path for saved in list_checkpoints(folder)
            if saved.position > ((runner.epoch, runner.iter) if saved.by_epoch
                                 else (runner.iter, 0))
        ]
        if runner.iter == 0:
            ahead += sorted(Path(folder).glob('best_*.pth'))
        if ahead:
            aside = move_to_previous(ahead)
            runner.logger.warning(
                f'Moved {len(ahead)} checkpoints of an earlier run to '
                f'{aside}: this run starts at iteration {runner.iter}.')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add batch and encoder to the metadata; store plain values."""
        checkpoint['meta'].update(
            world_size=get_world_size(),
            batch_size=runner.train_dataloader.batch_size,
            **encoder_record(unwrapped_model(runner),
                             image_settings(runner.cfg)))
        info = checkpoint['message_hub']['runtime_info']
        for key, value in info.items():
            if key.startswith(_PATHS) and isinstance(value, str):
                info[key] = Path(value).name
        checkpoint['message_hub'] = to_plain(checkpoint['message_hub'])

    def after_train_iter(self, runner, batch_idx: int, *args,
                         **kwargs) -> None:
        """Save a pending checkpoint after an optimizer step."""
        if self._deferred is not None and at_optimizer_step(runner):
            step = self._deferred if self.by_epoch else runner.iter + 1
            self._save_checkpoint_with_step(
                runner, step, dict(epoch=runner.epoch, iter=runner.iter + 1))
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def after_train(self, runner) -> None:
        """Save a pending checkpoint."""
        if self._deferred is not None:  # another hook stopped training
            self.save_now(runner, runner.epoch, runner.iter)
        super().after_train(runner)

    def save_now(self,
                 runner,
                 epoch: int,
                 iteration: int,
                 within_epoch: bool = False) -> str | None:
        """Save at once, also within gradient accumulation.

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
            step: Any = epoch if self.by_epoch else iteration
            if self.by_epoch and within_epoch:
                step = f'{epoch}_iter_{iteration}'
            self._save_checkpoint_with_step(
                runner, step, dict(epoch=epoch, iter=iteration), force=True)
        saved = self._saved is not None and self._saved[0] == iteration
        return self.last_ckpt if saved else None

    def _save_checkpoint_with_step(self, runner, step, meta,
                                   force: bool = False) -> None:
        if not force and not at_optimizer_step(runner):
            self._deferred = step
            return
        self._deferred = None
        if not self._parameters_are_finite(runner):
            return
        hub, replaced = runner.message_hub, []
        if self.max_keep_ckpts > 0:
            ids = [i for i in self.keep_ckpt_ids if i != step] + [step]
            replaced = ids[:-self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(ids[-self.max_keep_ckpts:])
            # Includes replaced checkpoints: if the run is killed before they
            # are removed, the resumed run removes them.
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
            newest = str(Path(self.last_ckpt).absolute())
            CheckpointBackend.attempt(write_file, pointer, newest)
            for old in replaced:
                CheckpointBackend.attempt(remove_file, Path(
                    self.out_dir) / self.filename_tmpl.format(old))
        self._raise_problem()

    def after_val_epoch(self, runner, metrics) -> None:
        """Save the best checkpoint."""
        set_validation_pending(runner, False)
        super().after_val_epoch(runner, metrics)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if self.save_best and self._parameters_are_finite(runner):
            super()._save_best_checkpoint(runner, metrics)
            self._raise_problem()

    def _raise_problem(self) -> None:
        """Raise an error on all ranks if a write has failed on rank 0."""
        problem = [CheckpointBackend.pop_problem()]
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise CheckpointError(problem[0])

    def _parameters_are_finite(self, runner) -> bool:
        """Return whether all parameters are finite, on all ranks."""
        model = unwrapped_model(runner)
        finite = True
        if is_main_process() or is_sharded(model):
            finite = all_finite(model)
        finite = all(all_gather_object(finite))
        if self._finite and not finite:
            runner.logger.warning(
                f'Parameters are not finite at iteration {runner.iter}. No '
                'checkpoint is saved; earlier checkpoints are kept.')
        self._finite = finite
        return finite


def all_finite(model: nn.Module) -> bool:
    """Return whether all parameters are finite, with one synchronisation.

    Checks this rank's shard of a sharded model.
    """
    finite = [torch.isfinite(local_shard(p.detach())).all()
              for p in model.parameters()]
    return not finite or bool(torch.stack(finite).all())
