"""What a command is, and how every one begins and ends."""
import argparse
import gc
import json
import os
import sys
import textwrap
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    NoReturn,
    Optional,
)

from ..apis.arguments import (
    accepts,
    check_arguments,
    load_libraries,
    types_of,
)
from .arguments import check_inputs
from .errors import fail

# What a command has found out, by name: printed with ``--json``.
Result = Dict[str, Any]


class Command(NamedTuple):
    """One part of the command ``cmae``.

    Args:
        name (str): What is typed.
        help (str): One line, for the list of all commands.
        example (str): One or more command lines, shown below the help.
        add_arguments (Callable): Adds the command's own arguments to a parser.
            Positional ones come in this order, as far as there are any: DATA,
            CONFIG, CHECKPOINT, OUT.
        run (Callable): Takes the parsed arguments; gives a result, or None.
            It imports what is heavy by itself.
        description (str): What else the help says. Defaults to ''.
        check (Callable, optional): Raises for mistakes that can be found
            before anything is imported. That DATA, CONFIG and CHECKPOINT are
            there is looked at anyway. Defaults to None.
        registers (bool): Whether the plugin and the libraries below are
            needed. Defaults to True.
        error_status (int): Exit status of a mistake. Defaults to 1.
        stopped (Callable, optional): Takes the parsed arguments; says, after
            Ctrl-C, what was saved and how to go on. Defaults to None:
            nothing was written.
    """

    name: str
    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Optional[Result]]
    description: str = ''
    check: Optional[Callable[[argparse.Namespace], None]] = None
    registers: bool = True
    error_status: int = 1
    stopped: Optional[Callable[[argparse.Namespace], str]] = None

    def add_to(self, parts: Any) -> None:
        """Add it to the subparsers of the whole command."""
        title = self.help[0].upper() + self.help[1:] + '.'
        examples = '\n'.join(
            f'  {line}' for line in self.example.strip().splitlines())
        more = textwrap.fill(self.description, 79, break_long_words=False)
        parser = parts.add_parser(
            self.name,
            description=f'{title}\n\n{more}'.strip(),
            epilog=f'for example:\n{examples}')
        self.add_arguments(parser)
        parser.usage = ' '.join([parser.prog, *needed(parser), '[OPTIONS]'])
        group = parser.add_argument_group('output')
        group.add_argument(
            '--json', action='store_true',
            help='print the result as JSON, in the last line')
        group.add_argument(
            '--debug', action='store_true',
            help='show where an error comes from (CMAE_DEBUG=1 does the '
            'same)')
        parser.set_defaults(chosen=self)


def needed(parser: argparse.ArgumentParser) -> List[str]:
    """List what a command line must have, in the order to write it in."""
    actions = [a for a in parser._actions if a.required]
    return [str(a.metavar or a.dest) for a in actions if not a.option_strings
            ] + [
        f'{a.option_strings[0]} ' + (
            ' '.join(a.metavar) if isinstance(a.metavar, tuple)
            else a.metavar or a.dest.upper())
        for a in actions if a.option_strings]


def run(args: argparse.Namespace) -> NoReturn:
    """Run a command and exit.

    Errors of the user end in one sentence, see
    :func:`~cmae_mm.cli.errors.fail`. ``SystemExit`` of a training that saved
    at a signal keeps its status.

    Args:
        args (argparse.Namespace): With ``chosen``, the command. The
            ``exit_status`` of its result, if any, is the process's.
    """
    status: Any = 0
    try:
        result = perform(args)
        status = result.pop('exit_status', 0)
        if args.json and _is_first_rank():
            # In one write, which the lines of other ranks cannot split.
            sys.stdout.write(f'{json.dumps(result, default=_plain)}\n')
            sys.stdout.flush()
    except SystemExit as stop:
        # Without its traceback, whose frames hold what leave_ranks ends.
        status = stop.code
    except KeyboardInterrupt as stop:
        # In training: pressed twice, or before there was anything to save.
        stopped = getattr(args.chosen, 'stopped', None)
        saved = str(stop) or (
            stopped(args) if stopped else 'nothing was written')
        print(f'\ncmae {args.command}: stopped; {saved}', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        declared = getattr(args.chosen, 'declaration', args.chosen)
        fail(error, f'cmae {args.command}', args.debug,
             declared.error_status)
    leave_ranks()
    sys.exit(status)


def perform(args: argparse.Namespace) -> Result:
    """Check a command line and run its function; errors are raised.

    Args:
        args (argparse.Namespace): With ``chosen``, the command.

    Returns:
        Result: The result, by name.
    """
    if isinstance(args.chosen, Command):
        return _perform_old(args)
    function = args.chosen
    values = {name: _unwrap(getattr(args, name), hint)
              for name, hint in types_of(function).items()
              if name != 'return'}
    check_arguments(function, values)
    if function.declaration.libraries:
        load_libraries(function.declaration.libraries)
    if getattr(args, 'local_rank', None) is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    result = function.__wrapped__(**values)
    if hasattr(result, 'as_json'):
        return result.as_json()
    return dict(result._asdict() if hasattr(result, '_asdict')
                else result or {})


def _unwrap(value: Any, hint: Any) -> Any:
    """Return the word of an option that takes a word or several numbers."""
    one = isinstance(value, list) and len(value) == 1
    return value[0] if one and not accepts(value, hint) else value


def _perform_old(args: argparse.Namespace) -> Result:
    command: Command = args.chosen
    check_inputs(args)
    if command.check is not None:
        command.check(args)
    if command.registers:
        load_libraries()
    return dict(command.run(args) or {})


def leave_ranks() -> None:
    """End the talk with other processes, if there are any.

    A process that exits while a thread still lets go of what was sent may be
    aborted, and its exit status then says that training failed. The threads
    end with the last that holds their group, which a model in a cycle does.
    """
    if 'torch' not in sys.modules:
        return
    import torch.distributed as dist
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def _plain(value: Any) -> Any:
    """Give JSON what arrays and scalars of numpy and torch hold."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def _is_first_rank() -> bool:
    if 'mmengine' not in sys.modules:
        return True
    from mmengine.dist import is_main_process
    return is_main_process()
