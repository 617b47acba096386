"""Checkpoints of a run: names, order, validity, and fit to a model."""
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoints import (CheckpointError, DamagedCheckpoint, check_complete,
                           find_encoder, read_encoder_record)
from ..checkpoints.layouts import PRETRAINING, RELEASED
from ..checkpoints.load import from_released
from ..checkpoints.read import StateDict, unwrap
from ..checkpoints.state_dict import compare, grid_of, read_sizes
from ..models import CMAE

# Names of checkpoints; the last number is the iteration within an epoch.
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')
_NAME = re.compile(r'(epoch|iter)_(\d+)(?:_iter_(\d+))?\.pth')


def check_template(template: str) -> None:
    """Check ``filename_tmpl`` of a checkpoint hook.

    Raises:
        ValueError: If it is not mmengine's default.
    """
    if template not in TEMPLATES:
        raise ValueError(
            f'filename_tmpl={template!r} is not supported: a run resumes from '
            'epoch_<N>.pth or iter_<N>.pth; remove the setting')


class SavedStep(NamedTuple):
    """A checkpoint and the position encoded in its name."""

    path: Path
    by_epoch: bool
    # Epochs or iterations, and the iteration within an epoch or 0.
    position: tuple[int, int]


def list_checkpoints(folder: str) -> list[SavedStep]:
    """List a run's checkpoints, newest first.

    They are ordered by the numbers in their names, or by modification time if
    a folder has both kinds, by epoch and by iteration.

    Args:
        folder (str): The folder, which may be missing.

    Returns:
        list[SavedStep]: The checkpoints, whose content is not checked.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    found = []
    try:
        for path in sorted(Path(folder).iterdir()):
            name = _NAME.fullmatch(path.name)
            if name and path.is_file():
                found.append(SavedStep(path, name[1] == 'epoch', (
                    int(name[2]), int(name[3] or 0))))
        mixed = len({saved.by_epoch for saved in found}) > 1
        return sorted(
            found, reverse=True,
            key=lambda saved: (saved.path.stat().st_mtime_ns if mixed else 0,
                               saved.position))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f'the checkpoints in {folder} could not be listed: '
            f'{error.strerror}') from error


def list_saved(cfg: Mapping[str, Any]) -> list[SavedStep]:
    """List the saved checkpoints of a config's run, newest first.

    Args:
        cfg (Config): The config, with ``work_dir``.

    Returns:
        list[SavedStep]: See :func:`list_checkpoints`.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return list_checkpoints(
        checkpoint_folder(hook.get('out_dir'), cfg['work_dir']))


def checkpoint_folder(out_dir: str | None, work_dir: str) -> str:
    """Return the folder of a run's checkpoints.

    Args:
        out_dir (str, optional): Setting of the checkpoint hook.
        work_dir (str): The work folder.
    """
    if out_dir in (None, work_dir):
        return work_dir
    return os.path.join(os.path.expanduser(out_dir), Path(work_dir).name)


def find_newest_complete(checkpoints: Sequence[SavedStep]) -> Path | None:
    """Find the newest intact checkpoint, and rename damaged newer ones.

    Args:
        checkpoints (Sequence[SavedStep]): The checkpoints, newest first.

    Returns:
        Path: The checkpoint, or None if the list is empty.

    Raises:
        CheckpointError: If all are damaged, or a file cannot be read.
    """
    damaged: list[tuple[Path, DamagedCheckpoint]] = []
    for path, *_ in checkpoints:
        try:
            check_complete(path)
        except DamagedCheckpoint as error:
            damaged.append((path, error))
            continue
        except CheckpointError as error:
            raise CheckpointError(
                f'{error}; no file was changed, and this one may be intact; '
                'run the same command again when it can be read') from error
        for bad, reason in damaged:
            aside = bad.with_name(f'{bad.name}.damaged')
            bad.replace(aside)
            print_log(
                f'{reason}; renamed to {aside.name}, and the earlier '
                f'{path.name} is used',
                logger='current',
                level=logging.WARNING)
        return path
    if damaged:
        raise CheckpointError(
            f'all {len(damaged)} checkpoints in {damaged[0][0].parent} are '
            f'damaged (the newest: {damaged[0][1]}); start a new run with '
            '--no-resume, which moves them to previous_<N>, or in another '
            'folder')
    return None


def move_to_previous(paths: Sequence[Path]) -> Path:
    """Move checkpoints of an earlier run to a separate folder.

    Args:
        paths (Sequence[Path]): The checkpoints, in one folder.

    Returns:
        Path: The folder ``previous_<N>``.
    """
    folder, number = paths[0].parent, 1
    while (folder / f'previous_{number}').exists():
        number += 1
    aside = folder / f'previous_{number}'
    aside.mkdir()
    for path in paths:
        path.replace(aside / path.name)
    return aside


def on_main_process(function: Callable, *args: Any) -> Any:
    """Call a function on rank 0 and broadcast its result.

    Args:
        function (Callable): The function.
        *args: Its arguments.

    Returns:
        Any: The value that the function returns, on each rank.

    Raises:
        CheckpointError: On each rank, if it or an ``OSError`` is raised on
            rank 0.
    """
    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = function(*args)
        except (CheckpointError, OSError) as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise CheckpointError(answer[1])
    return answer[0]


RESUME, START, TEST = 'resume', 'load_from', 'test'
# CMAE modules that an MAE checkpoint or an encoder does not contain. A
# checkpoint has all keys of a module or none.
_PARTS = ('neck.pixel_decoder.', 'neck.feature_decoder.', 'neck.projector.',
          'head.', 'target.')
_LISTED = 10
_ADVICE = {
    RESUME: 'a run can only be resumed with the same model; to start a new '
    'run from these weights, use load_from',
    START: 'set load_partial=True to load the keys that fit, or load the '
    'encoder alone by model.backbone.init_cfg=dict(type="Pretrained", '
    'checkpoint=...)',
    TEST: 'use the config that the checkpoint was trained with'
}


class Loadable(NamedTuple):
    """A state dict that fits a model, and lines for the log."""

    state: 'OrderedDict[str, Tensor]'
    lines: list[str]
    copy_target: bool


def check_training_state(checkpoint: Any) -> None:
    """Check that a run can be resumed from a checkpoint.

    Args:
        checkpoint (Any): Content of a file.

    Raises:
        CheckpointError: If it contains weights only.
    """
    content = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [k for k in ('meta', 'message_hub', 'optimizer')
               if not isinstance(content.get(k), dict)]
    if 'meta' not in missing:
        missing += [f'meta.{k}' for k in ('epoch', 'iter')
                    if k not in content['meta']]
    if missing:
        raise CheckpointError(
            f'it contains no training state ({", ".join(missing)} missing); '
            'to start a new run from its weights, use load_from')


def fit(model: nn.Module, checkpoint: Any, purpose: str,
        allow_partial: bool = False) -> Loadable:
    """Adapt a checkpoint's state dict to a model, before loading.

    Args:
        model (nn.Module): A model without its distributed wrapper.
        checkpoint (Any): Content of a file.
        purpose (str): 'resume', 'load_from' or 'test'. A CMAE may start from
            an encoder or an MAE; otherwise all keys must fit.
        allow_partial (bool): Whether 'load_from' may load only the keys that
            fit. Defaults to False.

    Returns:
        Loadable: State dict with every name of the model.

    Raises:
        CheckpointError: If it does not fit.
    """
    state, meta = unwrap(checkpoint)
    grid = grid_of(state, read_encoder_record(meta), 'backbone.')
    metadata = getattr(state, '_metadata', None)
    optional: list[str] = []
    lines: list[str] = []
    starts_cmae = isinstance(model, CMAE) and purpose == START
    if starts_cmae:
        state, optional, lines = _start_of_cmae(model, state)
    expected = model.state_dict()
    # As in mmengine: early versions of torch had no BatchNorm counts.
    optional += [k for k in expected if k.endswith('num_batches_tracked')]
    fitting, report = compare(
        model, state, optional, inflate=starts_cmae, grid=grid)
    if purpose == RESUME and report.resampled:
        raise CheckpointError(
            f'it is of another image size ({report.resampled[0]}); '
            f'{_ADVICE[RESUME]}')
    if not report.fits:
        if not (allow_partial and purpose == START and fitting):
            sizes = [read_sizes(s, 'backbone.') for s in (state, expected)]
            differ = '' if sizes[0] == sizes[1] or None in sizes else (
                f"its encoder is {sizes[0]}, the model's {sizes[1]}; ")
            raise CheckpointError(
                f'it does not fit the model: {differ}{_ADVICE[purpose]}\n'
                f'{report.listed(_LISTED)}')
        lines.append('load_partial=True: only the keys that fit were loaded; '
                     f'{report.listed(_LISTED)}')
    lines += report.inflated + report.resampled
    complete = OrderedDict({**expected, **fitting})
    if metadata is not None:
        complete._metadata = metadata  # type: ignore[attr-defined]
    new_target = (starts_cmae and model.target is not None
                  and not any(k.startswith('target.') for k in state))
    if new_target:
        lines.append('the target starts as a copy of the loaded online branch')
    return Loadable(complete, lines, new_target)


def _start_of_cmae(model: nn.Module, state: StateDict
                   ) -> tuple[StateDict, list[str], list[str]]:
    """Return state dict, optional names and log lines to initialise a CMAE."""
    found, kind, lines, *_ = find_encoder(state)
    if kind == RELEASED:
        state, optional = from_released(model, state)
        return state, optional, [f'it is {kind}']
    if kind != PRETRAINING:
        state = {f'backbone.{k}': v for k, v in found.items()}
    fresh = tuple(part for part in _PARTS
                  if not any(k.startswith(part) for k in state))
    optional = [k for k in model.state_dict() if fresh and k.startswith(fresh)]
    if kind == PRETRAINING and not optional:
        return state, [], []
    made = sorted({part for part in fresh
                   if any(k.startswith(part) for k in optional)})
    return state, optional, [
        f'it is {kind}; new, not from it: '
        f'{", ".join(p.rstrip(".") for p in made) or "nothing"}', *lines]
