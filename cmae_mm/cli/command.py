"""Run a command: arguments, result, errors and exit status."""
import argparse
import gc
import inspect
import json
import os
import sys
from typing import Any, Dict, NoReturn

from ..apis.arguments import (
    accepts,
    check_arguments,
    load_libraries,
    types_of,
)


def run(args: argparse.Namespace) -> NoReturn:
    """Run a command and exit.

    Errors end in one sentence, see :func:`~cmae_mm.cli.errors.fail`.
    ``SystemExit`` of a training that was stopped by a signal keeps its
    status.

    Args:
        args (argparse.Namespace): With ``chosen``, the command. The
            ``exit_status`` of its result, if any, is the process's.
    """
    status: Any = 0
    try:
        result = perform(args)
        status = result.pop('exit_status', 0)
        if args.json and _is_first_rank():
            # One write, so that other ranks cannot split the line.
            sys.stdout.write(f'{json.dumps(result, default=_plain)}\n')
            sys.stdout.flush()
    except SystemExit as stop:
        # Drop the traceback, whose frames reference the process group.
        status = stop.code
    except KeyboardInterrupt as stop:
        # In training: pressed twice, or before the first step.
        saved = str(stop) or 'nothing was written'
        print(f'\ncmae {args.command}: stopped; {saved}', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from .errors import fail
        fail(error, f'cmae {args.command}', args.debug)
    leave_ranks()
    sys.exit(status)


def perform(args: argparse.Namespace) -> Dict[str, Any]:
    """Check a command line and run its function; errors are raised.

    Args:
        args (argparse.Namespace): With ``chosen``, the command.

    Returns:
        Dict[str, Any]: The result, by name, which ``--json`` prints.
    """
    function = args.chosen
    values = {name: _unwrap(getattr(args, name), hint)
              for name, hint in types_of(function).items()}
    check_arguments(function, values)
    if function.declaration.libraries:
        load_libraries(function.declaration.libraries)
    if getattr(args, 'local_rank', None) is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    positional = [
        values.pop(p.name) for p in inspect.signature(
            function).parameters.values() if p.kind is p.POSITIONAL_ONLY]
    result = function.__wrapped__(*positional, **values)
    if hasattr(result, 'as_json'):
        return result.as_json()
    return dict(result._asdict() if hasattr(result, '_asdict')
                else result or {})


def _unwrap(value: Any, hint: Any) -> Any:
    """Return the word of an option that takes a word or a list."""
    one = isinstance(value, list) and len(value) == 1
    return value[0] if one and not accepts(value, hint) else value


def leave_ranks() -> None:
    """Destroy the process group of distributed training, if there is one.

    A process that exits while a communication thread runs may be aborted, with
    the exit status of a failed training. The threads end with the last
    reference to their group, which a model in a reference cycle keeps.
    """
    if 'torch' not in sys.modules:
        return
    import torch.distributed as dist
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def _plain(value: Any) -> Any:
    """Convert arrays and scalars of numpy and torch for JSON."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def _is_first_rank() -> bool:
    if 'mmengine' not in sys.modules:
        return True
    from mmengine.dist import is_main_process
    return is_main_process()
