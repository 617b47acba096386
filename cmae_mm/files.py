"""Atomic writing of output files, and locks for outputs.

All functions raise ``OSError`` with the output as ``filename`` and the reason
as ``strerror``.
"""
import contextlib
import errno
import fcntl
import os
import re
import secrets
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PathLike = str | os.PathLike[str]

# Prefix of temporary files.
PREFIX = '.saving-'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Messages of libraries that raise their own errors on a full disk.
_FULL_TEXT = re.compile(
    r'No space left|os error 28|Disk quota|\d+ requested and \d+ written|'
    r'failed writing|write failed|iostream error', re.IGNORECASE)


def output_error(path: PathLike, error: BaseException) -> OSError:
    """Convert a write error to an ``OSError`` with the name of the output.

    Args:
        path (str | PathLike): The output.
        error (BaseException): The error of writing.

    Returns:
        OSError: With the output's path and a reason.
    """
    if isinstance(error, OSError) and error.filename == str(path) and str(
            error.strerror).startswith('cannot be written'):
        return error
    code = getattr(error, 'errno', None) or errno.ENOSPC
    reason = getattr(error, 'strerror', None) or os.strerror(code)
    return OSError(code, f'cannot be written: {reason}', str(path))


@contextlib.contextmanager
def writing(path: PathLike, only_full: bool = False) -> Iterator[None]:
    """Add the name of the output to write errors.

    Args:
        path (str | PathLike): The output.
        only_full (bool): Whether to convert only errors of a full or
            read-only disk, for code that also reads files. Defaults to False.

    Raises:
        OSError: With the output's path and a reason.
    """
    try:
        yield
    except Exception as error:
        found = error if isinstance(error, OSError) else None
        if only_full or found is None:
            found = _find_full_disk(error)
        if found is None:
            raise
        raise output_error(path, found) from error


def _find_full_disk(error: BaseException | None) -> OSError | None:
    """Find a full disk in a chain of errors."""
    while error is not None:
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL:
            return OSError(code, None)
        if code is None and _FULL_TEXT.search(str(error)):
            return OSError(errno.ENOSPC, None)
        error = error.__cause__ or error.__context__
    return None


def check_output(path: PathLike, is_folder: bool = False) -> None:
    """Check that an output can be written, before any work is done.

    Args:
        path (str | PathLike): The file or folder.
        is_folder (bool): Whether it is a folder. Defaults to False.

    Raises:
        OSError: If the path is of another kind, or cannot be written.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        if is_folder and target.exists() and not target.is_dir():
            raise OSError(errno.EINVAL, 'it is a file, not a folder')
        if not is_folder:
            _check_file(target)
        there = target if is_folder else target.parent
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise OSError(errno.ENOTDIR, '')
        if not os.access(there, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, '')
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, '')


def _check_file(target: Path) -> None:
    """Check that an existing file can be replaced."""
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, '')
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, 'it is not a regular file')
    if not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, '')


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Write a file atomically through a temporary path.

    The file has the permissions of the umask, or of the file that it
    replaces. Links are followed.

    Args:
        path (str | PathLike): The file; its folder is made if missing.

    Yields:
        Path: A file with the same ending in the same folder. It is renamed
        to ``path`` at the end, and removed on any error, Ctrl-C or SIGTERM.

    Raises:
        OSError: If the file cannot be written.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        _check_file(target)
        made = _make_folders(target.parent)
    suffix = target.suffix if len(os.fsencode(target.suffix)) < 20 else ''
    temporary = target.with_name(f'{PREFIX}{secrets.token_hex(8)}{suffix}')
    with _raising_on_sigterm(), contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        stack.callback(remove_file, temporary)
        with writing(path):
            opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                             0o666)
            stack.callback(os.close, opened)
            mode = os.stat(target if target.exists() else opened).st_mode
        with contextlib.suppress(OSError):  # see remove_temporaries
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with writing(path, only_full=True):
            yield temporary
        with writing(path):
            _sync(temporary)
            if temporary.stat().st_mode != mode:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.replace(temporary, target)
            _sync(target.parent)


def remove_file(path: PathLike) -> None:
    """Remove a file, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, unless the caller handles the signal."""
    if threading.current_thread() is not threading.main_thread() or (
            signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk where possible."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that can be written but not read
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


@contextlib.contextmanager
def atomic_file(path: PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that is written atomically.

    Args:
        path (str | PathLike): See :func:`atomic_path`.

    Yields:
        BinaryIO: The open file.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        yield file


def write_file(path: PathLike, data: bytes | str) -> None:
    """Write a file atomically.

    Args:
        path (str | PathLike): See :func:`atomic_path`.
        data (bytes | str): The content. Text is encoded as UTF-8; surrogates
            of undecodable file names become their original bytes.

    Raises:
        OSError: If it cannot be written.
    """
    if isinstance(data, str):
        data = data.encode('utf-8', 'surrogateescape')
    with atomic_file(path) as file:
        file.write(data)


def append_line(path: PathLike, line: str) -> None:
    """Append a line to a file, completely or not at all.

    Args:
        path (str | PathLike): The file; it and its folder are made if
            missing.
        line (str): The line, without its end.

    Raises:
        OSError: If it cannot be written.
    """
    data = f'{line}\n'.encode('utf-8', 'surrogateescape')
    with writing(path):
        made = _make_folders(Path(path).parent)
        with open(path, 'ab', buffering=0) as file:
            size = file.tell()
            try:
                if (file.write(data) or 0) < len(data):
                    raise OSError(errno.ENOSPC, None)
            except OSError:
                file.truncate(size)
                if not size:
                    os.unlink(path)
                    _remove_empty(made)
                raise


def remove_temporaries(folder: PathLike) -> None:
    """Remove temporary files of processes that were killed.

    Args:
        folder (str | PathLike): The folder, which may be missing.
    """
    for path in Path(folder).glob(f'{PREFIX}*'):
        # A file that is being written is locked.
        with contextlib.suppress(OSError), open(path, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


class OutputInUse(RuntimeError):
    """Error: another process, named in the message, writes to the output."""


# Lock files of this process. The system would grant it each lock again.
_held: set[Path] = set()


@contextlib.contextmanager
def output_lock(path: PathLike, is_folder: bool = False) -> Iterator[None]:
    """Lock an output against other processes.

    The lock is a file with the process id and the host: ``.lock`` in a
    folder, ``.<name>.lock`` beside a file. The system releases it when the
    process ends in any way. Without effect on file systems without locks.

    Args:
        path (str | PathLike): The file or folder.
        is_folder (bool): Whether it is a folder, which is made if missing.
            Defaults to False.

    Raises:
        OutputInUse: If another process holds the lock.
        OSError: If the lock file cannot be written.
    """
    owner = f'process {os.getpid()} on {socket.gethostname()}'
    with _raising_on_sigterm(), contextlib.ExitStack() as stack:
        with writing(path):
            target = Path(os.path.realpath(path))
            folder = target if is_folder else target.parent
            stack.callback(_remove_empty, _make_folders(folder))
            file = folder / (
                '.lock' if is_folder else f'.{target.name}.lock')
            if file in _held:
                raise _in_use(path, owner)
            opened = _acquire(path, file)
            _held.add(file)
            stack.callback(os.close, opened)
            stack.callback(_held.remove, file)
            stack.callback(remove_file, file)
            command = ' '.join(
                [os.path.basename(sys.argv[0]), *sys.argv[1:2]])
            os.ftruncate(opened, 0)
            os.pwrite(opened, f'{owner} ({command[:100]})'.encode(
                'utf-8', 'replace'), 0)
        yield


def _in_use(path: PathLike, owner: str) -> OutputInUse:
    return OutputInUse(f'{path} is being written by {owner}; wait for it to '
                       'finish, or choose another output')


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; return the new ones, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, '')
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _acquire(path: PathLike, file: Path) -> int:
    """Lock a file; return its descriptor."""
    while True:
        opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Unlike one of flock, not inherited by forked data workers.
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.pread(opened, 300, 0).decode('utf-8', 'replace')
            os.close(opened)
            raise _in_use(path, owner or 'another process') from None
        except OSError:  # a file system without locks
            return opened
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened), os.stat(file)):
                return opened
        os.close(opened)  # its owner has just removed it
