"""What a command is, and how every one begins and ends."""
import argparse
import json
import sys
from typing import Any, Callable, Dict, NamedTuple, NoReturn, Optional

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
        registers (bool): Whether the plugin and the libraries below are
            needed. Defaults to True.
    """

    name: str
    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Optional[Result]]
    description: str = ''
    registers: bool = True

    def add_to(self, parts: Any) -> None:
        """Add it to the subparsers of the whole command."""
        title = self.help[0].upper() + self.help[1:] + '.'
        examples = '\n'.join(
            f'  {line}' for line in self.example.strip().splitlines())
        parser = parts.add_parser(
            self.name,
            help=self.help,
            description=f'{title}\n\n{self.description}'.strip(),
            epilog=f'for example:\n{examples}')
        self.add_arguments(parser)
        group = parser.add_argument_group('output')
        group.add_argument(
            '--json', action='store_true',
            help='print the result as JSON, in the last line')
        group.add_argument(
            '--debug', action='store_true',
            help='show where an error comes from (CMAE_DEBUG=1 does the '
            'same)')
        parser.set_defaults(chosen=self)


def run(args: argparse.Namespace) -> NoReturn:
    """Run a command and exit.

    Nothing in a file is run while it does, and mistakes end in one sentence,
    see :func:`~cmae_mm.checkpoints.load_only_safely` and
    :func:`~cmae_mm.cli.errors.fail`. What training saves when it is told to
    end comes as ``SystemExit`` with a status of its own, which is kept.

    Args:
        args (argparse.Namespace): With ``chosen``, the command. Its result's
            ``exit_status``, if there is one, is the process's.
    """
    from .errors import fail
    command: Command = args.chosen
    status = 0
    try:
        if command.registers:
            import cmae_mm
            from cmae_mm.checkpoints import load_only_safely
            cmae_mm.register()
            load_only_safely()
        result = command.run(args) or {}
        status = result.pop('exit_status', 0)
        if args.json and _is_first_rank():
            print(json.dumps(result), flush=True)
    except KeyboardInterrupt:
        # Pressed twice, or before there was anything to save.
        sys.exit(130)
    except Exception as error:
        fail(error)
    sys.exit(status)


def _is_first_rank() -> bool:
    if 'mmengine' not in sys.modules:
        return True
    from mmengine.dist import is_main_process
    return is_main_process()
