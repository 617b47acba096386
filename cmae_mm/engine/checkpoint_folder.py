"""Which checkpoints a work folder has, and which of them are whole."""
import logging
import re
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ..checkpoints import CheckpointError, check_whole

TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')


class SavedStep(NamedTuple):
    """A checkpoint by its name: after how many epochs or iterations."""

    path: Path
    by_epoch: bool
    # epochs or iterations, and the iteration where it is within an epoch
    position: Tuple[int, int]


def list_checkpoints(folder: str,
                     template: Optional[str] = None,
                     by_epoch: bool = True) -> List[SavedStep]:
    """List a run's checkpoints, newest first.

    Their names say which is newer. Where a folder has both kinds, by epoch
    and by iteration, the time of writing does.

    Args:
        folder (str): The folder, which may be missing.
        template (str, optional): ``filename_tmpl`` of a checkpoint hook, which
            is looked for besides ``epoch_{}.pth`` and ``iter_{}.pth``.
            Defaults to None.
        by_epoch (bool): Whether the template's number counts epochs. Defaults
            to True.

    Returns:
        List[SavedStep]: The checkpoints, which have not been looked into.
    """
    kinds = {TEMPLATES[0]: True, TEMPLATES[1]: False}
    if template is not None:
        kinds.setdefault(template, by_epoch)
    found = []
    for name, counts_epochs in kinds.items():
        before, after = map(re.escape, name.split('{}'))
        pattern = re.compile(rf'{before}(\d+)(?:_iter_(\d+))?{after}')
        for path in Path(folder).glob(name.replace('{}', '*')):
            match = pattern.fullmatch(path.name)
            if match and path.is_file():
                position = (int(match[1]), int(match[2] or 0))
                found.append(SavedStep(path, counts_epochs, position))
    if len({saved.by_epoch for saved in found}) > 1:
        found.sort(key=lambda saved: saved.path.stat().st_mtime_ns)
    else:
        found.sort(key=lambda saved: saved.position)
    return found[::-1]


def find_newest_whole(checkpoints: Sequence[SavedStep]) -> Optional[Path]:
    """Find the newest whole checkpoint, and set aside damaged newer ones.

    Args:
        checkpoints (Sequence[SavedStep]): The checkpoints, newest first.

    Returns:
        Path: The checkpoint, or None where there are none.

    Raises:
        CheckpointError: If there are some and all are damaged.
    """
    damaged = []
    for path, *_ in checkpoints:
        try:
            check_whole(str(path))
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        for bad, error in damaged:
            aside = bad.with_name(f'{bad.name}.damaged')
            bad.replace(aside)
            print_log(
                f'{error}; it is now {aside.name}, and {path.name} before it '
                'is taken',
                logger='current',
                level=logging.WARNING)
        return path
    if damaged:
        raise CheckpointError(
            f'there is no whole checkpoint in {damaged[0][0].parent} to go on '
            f'from: {len(damaged)} are there, all damaged (the newest: '
            f'{damaged[0][1]}); start anew with --no-resume, which moves them '
            'aside, or in another folder')
    return None


def check_named(file: str) -> None:
    """Check a file that a person wants to go on from.

    Args:
        file (str): The file; a remote one is not looked at.

    Raises:
        CheckpointError: If it is not whole; names the newest one beside it
            that is.
    """
    if '://' in file:
        return
    try:
        check_whole(file)
    except CheckpointError as error:
        for path, *_ in list_checkpoints(str(Path(file).parent)):
            try:
                check_whole(str(path))
            except CheckpointError:
                continue
            raise CheckpointError(
                f'{error}; the newest whole one beside it is {path}') from None
        raise


def move_aside(paths: Sequence[Path]) -> Path:
    """Move checkpoints of an earlier run out of the way of the next one.

    Args:
        paths (Sequence[Path]): The checkpoints, in one folder.

    Returns:
        Path: The folder that they are in now: ``previous_<N>``.
    """
    folder, number = paths[0].parent, 1
    while (folder / f'previous_{number}').exists():
        number += 1
    aside = folder / f'previous_{number}'
    aside.mkdir()
    for path in paths:
        path.replace(aside / path.name)
    return aside


def on_main_process(function: Callable, *args):
    """Let one rank look and decide for all of them.

    Args:
        function (Callable): The function that is called on rank 0 alone.
        *args: Its arguments.

    Returns:
        Any: The value that the function returns, on each rank.

    Raises:
        CheckpointError: On each rank, if it is raised on rank 0.
    """
    answer = [None, None]
    if is_main_process():
        try:
            answer[0] = function(*args)
        except CheckpointError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise CheckpointError(answer[1])
    return answer[0]
