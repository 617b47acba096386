"""Saving checkpoints in a thread, each in full or not at all."""
import errno
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Callable, List, Optional

from mmengine.fileio import LocalBackend, register_backend

from ..files import output_error, write_file


class FileWriter:
    """Writes files in a thread, one after the other and never two at once.

    After a write that failed nothing more is done until
    :meth:`take_problem` has been asked, so that what builds on it (removing
    what it replaces) does not happen.
    """

    def __init__(self) -> None:
        self._executor: Optional[ThreadPoolExecutor] = None
        self._last: Optional[Future] = None
        self._problem: Optional[str] = None

    def write(self, path: Path, data: bytes) -> None:
        """Begin to write a file, as soon as the last one is written.

        Args:
            path (Path): The file.
            data (bytes): The content of the file.
        """
        self.wait()  # not two copies in memory either
        self.then(partial(write_file, path, data), path, len(data))

    def then(self,
             action: Callable[[], None],
             path: Optional[Path] = None,
             size: int = 0) -> None:
        """Do something after all that was asked for before has succeeded.

        Args:
            action (Callable): The function to call.
            path (Path, optional): The file that the action is about, for
                messages.
            size (int): Size of that file in bytes.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, 'checkpoint')
        self._last = self._executor.submit(self._do, action, path, size)

    def _do(self, action, path, size) -> None:
        if self._problem is not None:
            return
        try:
            action()
        except OSError as error:
            self._problem = describe_failure(error, path, size)

    def wait(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: What an action has raised, but for ``OSError``.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def take_problem(self) -> Optional[str]:
        """Wait, and give the sentence on what failed, once.

        Returns:
            str: The sentence, or None where nothing failed.
        """
        self.wait()
        problem, self._problem = self._problem, None
        return problem


def describe_failure(error: OSError, path: Optional[Path], size: int) -> str:
    """Put a failed write into a sentence.

    Args:
        error (OSError): The error of the operating system.
        path (Path, optional): The file; by default the one that the error
            names.
        size (int): Size of the file in bytes.

    Returns:
        str: What failed, what to do, and that earlier checkpoints are intact.
    """
    file = Path(path or error.filename or '.')
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = (f'free {max(size / 2**20, 0.1):.1f} MB or more on the disk '
                  f'of {file.parent}, or name another folder')
    else:
        advice = f'see to it that files can be written in {file.parent}'
    return (f'{file} {output_error(file, error).strerror}; {advice}; the '
            'checkpoints before it are intact')


# A process has one writer, whoever saves; a forked one must not wait for the
# thread of its parent.
WRITER = FileWriter()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=WRITER.__init__)


@register_backend('CheckpointBackend', force=True)
class CheckpointBackend(LocalBackend):
    """mmengine's backend of local files that loses none of them.

    ``put`` writes through :data:`WRITER`; what ``remove`` is told waits in
    :attr:`removals` until the caller knows that what comes instead is whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.removals: List[str] = []

    def put(self, obj: bytes, filepath) -> None:
        """Begin to write a file."""
        WRITER.write(Path(filepath), obj)

    def remove(self, filepath) -> None:
        """Note a file that is to go."""
        self.removals.append(str(filepath))

    def take_removals(self) -> List[str]:
        """Give the files that are to go, and forget them."""
        removals, self.removals = self.removals, []
        return removals
