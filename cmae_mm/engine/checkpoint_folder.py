"""Checkpoints of a work folder: names, order, validity."""
import logging
import os
import re
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ..checkpoints import CheckpointError, DamagedCheckpoint, check_whole

TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')
# The number in a template.
_NUMBER = re.compile(r'\{(?::(?:0\d+)?d)?\}')
# Separator of epoch and iteration in the name of a checkpoint within an epoch.
_WITHIN = '_iter_'


class NameTemplate(str):
    """``filename_tmpl`` of a checkpoint hook, for formatting and parsing.

    Args:
        template (str): A file name with one decimal number in braces, epochs
            or iterations: 'iter_{}.pth', 'epoch_{:03d}.pth'.

    Raises:
        ValueError: If the names that it formats cannot be parsed.
    """

    def __init__(self, template: str) -> None:
        before, *after = _NUMBER.split(template)
        # With a digit, since '.pth' alone would be a stem.
        stem, suffix = os.path.splitext(f'0{"".join(after)}')
        if len(after) != 1 or re.search('[/{}]', before + stem + suffix):
            raise ValueError(
                f'filename_tmpl={template!r} must be the name of a file with '
                "one whole number in braces, as in 'epoch_{:03d}.pth'")
        self._pattern = re.compile(
            re.escape(before) + r'(\d+)' + re.escape(stem[1:])
            + rf'(?:{_WITHIN}(\d+))?' + re.escape(suffix))

    def format(self, step: Union[int, str]) -> str:  # type: ignore[override]
        """Format the name of a checkpoint.

        Args:
            step (int | str): Epochs or iterations; ``<epochs>_iter_<n>``
                within an epoch.
        """
        number, _, iteration = str(step).partition(_WITHIN)
        stem, suffix = os.path.splitext(super().format(int(number)))
        return f'{stem}{_WITHIN}{iteration}{suffix}' if iteration else (
            stem + suffix)

    def parse(self, name: str) -> Optional[Tuple[int, int]]:
        """Parse a name.

        Args:
            name (str): Name of a file.

        Returns:
            Tuple[int, int]: Epochs or iterations, and the iteration within an
            epoch or 0; None for other files.
        """
        found = self._pattern.fullmatch(name)
        return (int(found[1]), int(found[2] or 0)) if found else None


class SavedStep(NamedTuple):
    """A checkpoint and the position encoded in its name."""

    path: Path
    by_epoch: bool
    # Epochs or iterations, and the iteration within an epoch or 0.
    position: Tuple[int, int]


def list_checkpoints(folder: str,
                     template: Optional[str] = None,
                     by_epoch: bool = True) -> List[SavedStep]:
    """List a run's checkpoints, newest first.

    They are ordered by the numbers in their names, or by modification time if
    a folder has both kinds, by epoch and by iteration.

    Args:
        folder (str): The folder, which may be missing.
        template (str, optional): ``filename_tmpl`` of a checkpoint hook, in
            addition to ``epoch_{}.pth`` and ``iter_{}.pth``. Defaults to None.
        by_epoch (bool): Whether the template's number counts epochs. Defaults
            to True.

    Returns:
        List[SavedStep]: The checkpoints, whose content is not checked.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    kinds = {TEMPLATES[0]: True, TEMPLATES[1]: False}
    if template is not None:
        kinds = {template: by_epoch, **kinds}
    found: Dict[Path, SavedStep] = {}
    try:
        paths = [p for p in sorted(Path(folder).iterdir()) if p.is_file()]
        for kind, counts_epochs in kinds.items():
            names = NameTemplate(kind)
            for path in paths:
                position = names.parse(path.name)
                if position is not None:
                    found.setdefault(
                        path, SavedStep(path, counts_epochs, position))
        mixed = len({saved.by_epoch for saved in found.values()}) > 1
        return sorted(
            found.values(), reverse=True,
            key=lambda saved: (saved.path.stat().st_mtime_ns if mixed else 0,
                               saved.position))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f'the checkpoints in {folder} could not be listed: '
            f'{error.strerror}') from error


def list_saved(cfg: Mapping[str, Any]) -> List[SavedStep]:
    """List the saved checkpoints of a config's run, newest first.

    Args:
        cfg (Config): The config, with ``work_dir``.

    Returns:
        List[SavedStep]: See :func:`list_checkpoints`.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folder = Path(cfg['work_dir'])
    if hook.get('out_dir') not in (None, cfg['work_dir']):
        folder = Path(hook['out_dir']) / folder.name
    return list_checkpoints(
        str(folder), hook.get('filename_tmpl'), hook.get('by_epoch', True))


def find_newest_whole(checkpoints: Sequence[SavedStep]) -> Optional[Path]:
    """Find the newest intact checkpoint, and rename damaged newer ones.

    Args:
        checkpoints (Sequence[SavedStep]): The checkpoints, newest first.

    Returns:
        Path: The checkpoint, or None if the list is empty.

    Raises:
        CheckpointError: If all are damaged, or a file cannot be read.
    """
    damaged: List[Tuple[Path, DamagedCheckpoint]] = []
    for path, *_ in checkpoints:
        try:
            check_whole(path)
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


def move_aside(paths: Sequence[Path]) -> Path:
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
    answer: List[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = function(*args)
        except (CheckpointError, OSError) as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise CheckpointError(answer[1])
    return answer[0]
