"""How the package has been entered: by the command, or by an import."""
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import PurePath
from typing import Any, Iterator, TextIO, cast

_NAMES = ('cmae', 'cmae.exe', 'cmae-script.py')
# mmpretrain prints it for debugging when it is imported.
_NOISE = 'Could not import OneDL'


def is_command() -> bool:
    """Say whether this process is the command ``cmae``.

    It answers ``--help`` and mistakes within a second, and so imports torch
    and the libraries, by ``cmae_mm.register()``, only when it needs them. A
    data worker that the command has spawned is none.
    """
    if '--multiprocessing-fork' in sys.orig_argv:
        return False
    started = next(iter(getattr(sys, 'argv', [])), '')
    if started == '-m':  # the package is being imported to find its __main__
        at = sys.orig_argv.index('-m') if '-m' in sys.orig_argv else 0
        return sys.orig_argv[at + 1:at + 2] == ['cmae_mm']
    return PurePath(started).name in _NAMES


class _WithoutNoise:
    """A stream that leaves one line out.

    Loggers that are made meanwhile may keep it: it hands on all else.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._after_noise = False

    def write(self, text: str) -> int:
        # print() writes the end of a line by itself.
        left_out = text == _NOISE or (self._after_noise and text == '\n')
        self._after_noise = text == _NOISE
        return len(text) if left_out else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Leave out what mmpretrain prints for its developers at import."""
    with redirect_stdout(cast(TextIO, _WithoutNoise(sys.stdout))):
        yield
