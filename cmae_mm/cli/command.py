"""How every command begins and ends."""
import sys
from typing import Callable, NoReturn, Optional

from ..checkpoints import load_only_safely
from .errors import fail


def run(main: Callable[[], Optional[int]]) -> NoReturn:
    """Run a command and exit.

    Nothing in a file is run while it does, and mistakes end in one sentence,
    see :func:`~cmae_mm.checkpoints.load_only_safely` and
    :func:`~cmae_mm.cli.errors.fail`.

    What training saves when it is told to end comes as ``SystemExit`` with a
    status of its own, which is kept.

    Args:
        main (Callable): The command; returns its exit status, or None.
    """
    load_only_safely()
    try:
        status = main()
    except KeyboardInterrupt:
        # Pressed twice, or before there was anything to save.
        sys.exit(130)
    except Exception as error:
        fail(error)
    sys.exit(status)
