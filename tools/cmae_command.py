"""Lets the scripts beside it be parts of the command ``cmae``."""
import sys
from typing import NoReturn


def run(command: str) -> NoReturn:
    """Run a part of the command with this process's arguments.

    Args:
        command (str): Its name.
    """
    sys.argv[:1] = ['cmae', command]
    try:
        from cmae_mm.cli.main import main
    except ImportError as error:
        sys.exit(f'cmae {command}: {error.name} is not installed; install '
                 "what cmae_mm needs with `pip install -e '.[onedl]'` in its "
                 "clone, or `pip install 'cmae_mm[onedl]'`")
    main()
