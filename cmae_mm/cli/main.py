"""The command ``cmae``: its parts, and how they are found."""
import argparse
import os
import sys
from typing import Dict, List, NoReturn, Optional, Tuple

from ..version import __version__
from . import (
    batch_size,
    checkpoints,
    dense,
    doctor,
    embed,
    evaluate,
    maps,
    pack,
    pictures,
    pretrain,
    report,
    splits,
    stats,
    study,
    test,
    train,
)
from .command import Command, run
from .parser import Parser, near

COMMANDS: List[Command] = [
    *pretrain.COMMANDS,
    *train.COMMANDS,
    *test.COMMANDS,
    *evaluate.COMMANDS,
    *dense.COMMANDS,
    *embed.COMMANDS,
    *study.COMMANDS,
    *pictures.COMMANDS,
    *maps.COMMANDS,
    *report.COMMANDS,
    *checkpoints.COMMANDS,
    *stats.COMMANDS,
    *pack.COMMANDS,
    *splits.COMMANDS,
    *batch_size.COMMANDS,
    *doctor.COMMANDS,
]
# How the help lists them: what one does first stands first.
GROUPS: Dict[str, Tuple[str, ...]] = {
    'pre-train and fine-tune': ('pretrain', 'train', 'test'),
    'evaluate': ('knn', 'linear', 'low-shot', 'dense-knn', 'dense-linear',
                 'embed', 'study'),
    'look': ('views', 'reconstruct', 'attention', 'features', 'map',
             'nearest', 'report'),
    'checkpoints': ('export', 'import'),
    'data': ('stats', 'store', 'shards', 'splits'),
    'check': ('doctor', 'batch-size'),
}


def list_commands() -> str:
    """List all commands in their groups, a line each."""
    helps = {command.name: command.help for command in COMMANDS}
    width = max(map(len, helps))
    lines: List[str] = []
    for heading, names in GROUPS.items():
        lines += ['', f'{heading}:']
        lines += [f'  {name:<{width}}  {helps[name]}' for name in names
                  if name in helps]
    return '\n'.join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command and all of its parts."""
    parser = Parser(
        prog='cmae',
        usage='cmae COMMAND ...',
        description='Contrastive Masked Autoencoders: pre-training, transfer '
        f'and evaluation of\nvision transformers.\n{list_commands()}',
        epilog='`cmae COMMAND --help` shows a command with an example. Configs'
        ' are files, or\npackaged ones by their name: cmae train '
        'cmae_vit-s_300e')
    parser.add_argument(
        '--version', action='version', version=f'cmae_mm {__version__}')
    parts = parser.add_subparsers(
        dest='command', metavar='COMMAND', prog=parser.prog, required=True,
        help=argparse.SUPPRESS)
    for command in COMMANDS:
        command.add_to(parts)
    return parser


def parse(arguments: List[str]) -> argparse.Namespace:
    """Parse a command line; ends the process where it is a mistake."""
    parser = build_parser()
    complete(parser)
    if not arguments:
        parser.print_help()
        sys.exit(2)
    names = [command.name for command in COMMANDS]
    # No option of the whole command takes a value.
    word = next((a for a in arguments if not a.startswith('-')), None)
    if word is not None and word not in names:
        parser.error(
            f'there is no command {word!r}'
            f'{near(word, names) or "; there are " + ", ".join(names)}')
    return parser.parse_args(arguments)


def complete(parser: argparse.ArgumentParser) -> None:
    """Complete a line for a shell that argcomplete has been set up in."""
    if '_ARGCOMPLETE' in os.environ:
        # Of setup.cfg's extra='completion'.
        import argcomplete
        argcomplete.autocomplete(parser)


def main(arguments: Optional[List[str]] = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        arguments (List[str], optional): What follows ``cmae``. Defaults to
            the process's.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # names that are not UTF-8
            stream.reconfigure(errors='backslashreplace')
    run(parse(sys.argv[1:] if arguments is None else arguments))
