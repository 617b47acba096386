"""Detection of the ``cmae`` process, and imports without messages."""
import importlib
import logging
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import PurePath
from typing import (
    Any,
    Callable,
    Iterator,
    Mapping,
    Sequence,
    TextIO,
    cast,
)

_NAMES = ('cmae', 'cmae.exe', 'cmae-script.py')
# Debug messages of mmpretrain, and messages of mmdet without mmcv's operators
# whose advice does not help.
_NOISE = ('Could not import OneDL', 'Line NMS is not compiled')


def is_command() -> bool:
    """Return whether this process is the command ``cmae``.

    The command imports torch and the libraries, by ``cmae_mm.register()``,
    only when it needs them, so that ``--help`` is fast. A data worker that
    the command has spawned is not the command.
    """
    if '--multiprocessing-fork' in sys.orig_argv:
        return False
    started = next(iter(getattr(sys, 'argv', [])), '')
    if started == '-m':  # the package is being imported to find its __main__
        at = sys.orig_argv.index('-m') if '-m' in sys.orig_argv else 0
        return sys.orig_argv[at + 1:at + 2] == ['cmae_mm']
    return PurePath(started).name in _NAMES


def import_on_use(package: str, modules: Mapping[str, Sequence[str]]
                  ) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package that imports names on first use.

    Args:
        package (str): Name of the package.
        modules (Mapping[str, Sequence[str]]): Names by module, relative to
            the package.
    """
    places = {name: f'.{module}' for module, names in modules.items()
              for name in names}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(
                f'module {package!r} has no attribute {name!r}')
        return getattr(importlib.import_module(places[name], package), name)

    return find


def check_system() -> None:
    """Check that this is a POSIX system, on which files can be locked.

    Raises:
        SystemExit: If it is not and this process is the command.
        ImportError: If it is not and the package is imported.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError as error:
        message = ('cmae_mm needs Linux or macOS; on Windows run it in WSL '
                   '(Windows Subsystem for Linux)')
        if is_command():
            sys.exit(f'cmae: {message}')
        raise ImportError(message) from error


class _WithoutNoise:
    """Stream that drops messages of libraries at import.

    Loggers created during the import may keep the stream, so other output is
    forwarded.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._after_noise = False

    def write(self, text: str) -> int:
        # print() writes the end of a line by itself.
        dropped = any(noise in text for noise in _NOISE) or (
            self._after_noise and text == '\n')
        self._after_noise = dropped and not text.endswith('\n')
        return len(text) if dropped else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in _NOISE)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop import messages about operators that pre-training does not need.

    ``cmae doctor`` and configs that need mmcv's operators report them.
    """
    warnings.filterwarnings(
        'ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    # An existing logger does not write to the stream below.
    logging_module = sys.modules.get('mmengine.logging')
    logger = None if logging_module is None else (
        logging_module.MMLogger.get_current_instance())
    if logger is not None:
        logger.addFilter(_is_wanted)
    try:
        with redirect_stdout(cast(TextIO, _WithoutNoise(sys.stdout))):
            yield
    finally:
        if logger is not None:
            logger.removeFilter(_is_wanted)
