"""Outputs: files that are whole or not there, and one writer for each.

- :func:`write_file`, :func:`atomic_file` and :func:`atomic_path` write a
  file under another name in the same folder and rename it when it is on disk.
- :func:`append_line` adds a line as a whole.
- :func:`output_lock` refuses a second process that would write to the same
  output.
- :func:`check_output` finds most problems before any work is done.

All raise an ``OSError`` whose ``filename`` is the output and whose
``strerror`` says why it cannot be written.
"""
import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, Optional, Set, Tuple, Union

PathLike = Union[str, 'os.PathLike[str]']

# How the names of files begin that are being written.
PREFIX = '.saving-'
_NUMBERS = itertools.count()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REASONS = {
    errno.ENOSPC: 'no space is left on the disk',
    errno.EDQUOT: 'the disk quota is used up',
    errno.EROFS: 'the file system is read-only',
    errno.EACCES: 'there is no permission',
    errno.EPERM: 'there is no permission',
    errno.EISDIR: 'it is a folder',
    errno.ENOTDIR: 'a part of its path is a file',
    errno.EEXIST: 'a part of its path is a file',
}
# What libraries say of a full disk, which raise errors of their own.
_FULL_TEXT = re.compile(
    r'No space left|os error 28|Disk quota|\d+ requested and \d+ written|'
    r'failed writing|write failed|iostream error', re.IGNORECASE)
# Temporary files of another machine are left over after so many seconds.
_OLD = 86400


def output_error(path: PathLike, error: BaseException) -> OSError:
    """Describe an output that cannot be written.

    Args:
        path (str | PathLike): The output.
        error (BaseException): The error that writing it has raised.

    Returns:
        OSError: With the output's name and a reason.
    """
    if isinstance(error, OSError) and error.filename == str(path) and str(
            error.strerror).startswith('cannot be written'):
        return error
    code = getattr(error, 'errno', None) or errno.ENOSPC
    reason = _REASONS.get(code) or getattr(error, 'strerror', None)
    return OSError(code, f'cannot be written: {reason or error}', str(path))


@contextlib.contextmanager
def writing(path: PathLike, only_full: bool = False) -> Iterator[None]:
    """Name the output in errors of writing it.

    Args:
        path (str | PathLike): The output.
        only_full (bool): Whether to leave errors alone but those of a full or
            read-only disk, for code that reads other files, too. Defaults to
            False.

    Raises:
        OSError: With the output's name and a reason.
    """
    try:
        yield
    except Exception as error:
        found = error if isinstance(error, OSError) else None
        if only_full or found is None:
            found = _full_disk(error)
        if found is None:
            raise
        raise output_error(path, found) from error


def _full_disk(error: Optional[BaseException]) -> Optional[OSError]:
    """Find a full disk among an error and what has caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (
                *_FULL, errno.EROFS):
            return error
        if not isinstance(error, OSError) or error.errno is None:
            if _FULL_TEXT.search(str(error)):
                return OSError(errno.ENOSPC, None)
        error = error.__cause__ or error.__context__
    return None


def check_output(path: PathLike, is_folder: bool = False) -> None:
    """Check that an output can be written, before any work is done.

    Args:
        path (str | PathLike): The file or folder.
        is_folder (bool): Whether it is a folder. Defaults to False.

    Raises:
        OSError: If it is a folder and not a file, or the reverse, or there is
            no permission to write there.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        if is_folder and target.exists() and not target.is_dir():
            raise OSError(errno.EINVAL, 'it is a file, and a folder is needed')
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
    """Check a file that is there already."""
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, '')
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, 'it is no regular file')
    if not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, '')


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Let a library write a file that is there in full or not at all.

    The file has the permissions that the umask gives, or those of the file
    that it replaces. A link is followed.

    Args:
        path (str | PathLike): The file; its folder is made if missing.

    Yields:
        Path: A file with the same ending in the same folder, to be written
        instead. It takes the name afterwards, and is removed on any error.

    Raises:
        OSError: If the file cannot be written.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        _check_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, mode = _reserve(target)
    try:
        with writing(path, only_full=True):
            yield temporary
        with writing(path):
            _sync(temporary)
            if stat.S_IMODE(temporary.stat().st_mode) != mode:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
            _sync(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _reserve(target: Path) -> Tuple[Path, int]:
    """Make an empty file beside another one; give its path and mode."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) < 20 else ''
    temporary = target.with_name(
        f'{PREFIX}{_machine()[:8]}-{os.getpid()}-{next(_NUMBERS)}{suffix}')
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of an earlier process with the same number
    opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(opened).st_mode)
    finally:
        os.close(opened)
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(target.stat().st_mode)
    return temporary, mode


def _sync(path: Path) -> None:
    """Bring a file, or a folder's names, to disk where that is possible."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that can be written and not read
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


class _Output(io.FileIO):
    """A file whose errors name the output that it becomes."""

    def __init__(self, temporary: Path, path: PathLike) -> None:
        super().__init__(temporary, 'w')
        self._path = path

    def write(self, data: Any) -> int:
        with writing(self._path):
            return super().write(data)


@contextlib.contextmanager
def atomic_file(path: PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that is there in full or not at all.

    Args:
        path (str | PathLike): See :func:`atomic_path`.

    Yields:
        BinaryIO: The file, to be written.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_path(path) as temporary, io.BufferedWriter(
            _Output(temporary, path)) as file:
        yield file


def write_file(path: PathLike, data: Union[bytes, str]) -> None:
    """Write a file so that at each moment the old or the new one is there.

    Args:
        path (str | PathLike): See :func:`atomic_path`.
        data (bytes | str): The content; text is written in UTF-8, and names
            of files that are none as their bytes.

    Raises:
        OSError: If it cannot be written.
    """
    if isinstance(data, str):
        data = data.encode('utf-8', 'surrogateescape')
    with atomic_file(path) as file:
        file.write(data)


def append_line(path: PathLike, line: str) -> None:
    """Add a line to a file, in full or not at all.

    Args:
        path (str | PathLike): The file; it and its folder are made if
            missing.
        line (str): The line, without its end.

    Raises:
        OSError: If it cannot be written.
    """
    data = f'{line}\n'.encode('utf-8', 'surrogateescape')
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with contextlib.suppress(OSError):  # where there are locks
                fcntl.lockf(opened, fcntl.LOCK_EX)
            size = os.fstat(opened).st_size
            try:
                if os.write(opened, data) < len(data):
                    raise OSError(errno.ENOSPC, None)
            except OSError:
                os.ftruncate(opened, size)
                raise
        finally:
            os.close(opened)


def remove_temporaries(folder: PathLike) -> None:
    """Remove what processes that were killed while writing left behind.

    Args:
        folder (str | PathLike): The folder, which may be missing.
    """
    for path in Path(folder).glob(f'{PREFIX}*'):
        found = re.match(rf'{PREFIX}(\w+)-(\d+)-', path.name)
        with contextlib.suppress(OSError):
            if found is None or (
                    not _is_alive(int(found[2]))
                    if found[1] == _machine()[:8] else
                    time.time() - path.stat().st_mtime > _OLD):
                path.unlink()


class OutputInUse(RuntimeError):
    """An output that another process writes to; the message says which."""


# Lock files that this process holds, and the process that has taken them.
_HELD: Set[Tuple[int, str]] = set()


@contextlib.contextmanager
def output_lock(path: PathLike, is_folder: bool = False) -> Iterator[None]:
    """Keep other processes from writing to an output.

    The lock is a file with the process id and the machine: ``.lock`` in a
    folder, ``.<name>.lock`` beside a file. The system releases it when the
    process ends in any way. A lock file of a process that has ended is taken
    over, also where the file system has no locks. One of another machine is
    taken over only by the same batch job, started again.

    Args:
        path (str | PathLike): The file or folder.
        is_folder (bool): Whether it is a folder, which is made if missing.
            Defaults to False.

    Raises:
        OutputInUse: If another process holds the output.
        OSError: If the lock file cannot be written.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        folder = target if is_folder else target.parent
        made = _make_folders(folder)
        name = hashlib.sha1(os.fsencode(target.name)).hexdigest() if len(
            os.fsencode(target.name)) > 200 else target.name
        file = folder / ('.lock' if is_folder else f'.{name}.lock')
    key = (os.getpid(), str(file))
    if key in _HELD:
        raise _in_use(path, file, _describe_self())
    try:
        opened = _acquire(path, file)
        _HELD.add(key)
        try:
            yield
        finally:
            _HELD.discard(key)
            with contextlib.suppress(OSError):
                os.unlink(file)
            os.close(opened)
    finally:
        # Nothing is left of an output that nothing was written to.
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


def _make_folders(folder: Path) -> Tuple[Path, ...]:
    """Make a folder and its parents; give those made, the inner one first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, '')
    return tuple(missing)


def _acquire(path: PathLike, file: Path) -> int:
    """Take a lock file; give its descriptor."""
    while True:
        with writing(path):
            opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locks = _locks(opened)
            owner = _read_owner(opened)
            if locks is False and not owner:
                time.sleep(0.2)  # it is about to be written
                owner = _read_owner(opened)
            if locks is False or not _is_gone(owner):
                raise _in_use(path, file, owner)
            if not _is_at(opened, file):
                os.close(opened)
                continue  # its holder has just removed it
            with writing(path):
                os.ftruncate(opened, 0)
                os.pwrite(opened, json.dumps(_describe_self()).encode(), 0)
            return opened
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(opened)
            raise


def _locks(opened: int) -> Optional[bool]:
    """Lock a file; False if another process has, None without locks."""
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        return None  # file systems that have none say so in several ways


def _is_at(opened: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), os.stat(file))
    except FileNotFoundError:
        return False


def _read_owner(opened: int) -> Dict[str, Any]:
    try:
        owner = json.loads(os.pread(opened, 10_000, 0))
    except ValueError:
        return {}
    is_whole = isinstance(owner, dict) and isinstance(owner.get('pid'), int)
    return owner if is_whole else {}


def _is_gone(owner: Dict[str, Any]) -> bool:
    """Say whether the process that has written a lock file has ended."""
    mine = _describe_self()
    if not owner:
        return True
    if owner.get('machine') == mine['machine']:
        return not _is_alive(owner.get('pid'), owner.get('started')) or (
            owner.get('pid') == mine['pid'])
    # Started again: the same machine, or another one that the job is now on.
    return owner.get('host') == mine['host'] or (
        mine['job'] is not None and owner.get('job') == mine['job'])


def _in_use(path: PathLike, file: Path, owner: Dict[str, Any]) -> OutputInUse:
    who = (f'process {owner["pid"]} on {owner.get("host")}'
           if 'pid' in owner else 'another process')
    if owner.get('command'):
        who += f' ({owner["command"]})'
    advice = 'wait until it has ended, or name another output'
    if owner.get('machine') not in (None, _machine()):
        advice += f'; if it has ended, delete {file}'
    return OutputInUse(f'{path} is being written by {who}; {advice}')


def _describe_self() -> Dict[str, Any]:
    names = ('SLURM_JOB_ID', 'PBS_JOBID', 'LSB_JOBID', 'JOB_ID')
    command = [os.path.basename(sys.argv[0] or 'python'), *sys.argv[1:2]]
    return dict(
        pid=os.getpid(), host=socket.gethostname(), machine=_machine(),
        started=_start_of(os.getpid()), command=' '.join(command),
        job=next((os.environ[n] for n in names if n in os.environ), None))


def _machine() -> str:
    """Give what a running machine has and no other, nor it after a restart."""
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        boot = socket.gethostname()
    return hashlib.sha1(boot.encode()).hexdigest()[:16]


def _start_of(pid: int) -> Optional[int]:
    """Give when a process was started, None where that cannot be told."""
    try:
        text = Path(f'/proc/{pid}/stat').read_text()
        return int(text.rpartition(')')[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _is_alive(pid: Any, started: Optional[int] = None) -> bool:
    """Say whether a process of this machine is running."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    except PermissionError:
        pass  # of another user
    now = _start_of(int(pid))
    # A number is given again to a later process.
    return started is None or now is None or now == started
