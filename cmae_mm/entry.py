"""How the package has been entered: by the command, or by an import."""
import sys
from pathlib import PurePath


def is_command() -> bool:
    """Say whether this process is the command ``cmae``.

    It answers ``--help`` and mistakes within a second, and so imports torch
    and the libraries, by ``cmae_mm.register()``, only when it needs them.
    """
    argv = getattr(sys, 'argv', [])
    name = PurePath(next(iter(argv), '')).name
    if name == '-m':  # while ``python -m cmae_mm`` looks for it
        name = sys.orig_argv[len(sys.orig_argv) - len(argv)]
        return name == 'cmae_mm'
    return name in ('cmae', 'cmae.exe', 'cmae-script.py')
