"""The command ``cmae``: its parts, and how they are found."""
import argparse
import sys
from typing import List, NoReturn, Optional

from . import doctor, embed, pretrain, train
from .command import Command, run
from .parser import Parser

COMMANDS: List[Command] = [
    *pretrain.COMMANDS,
    *train.COMMANDS,
    *embed.COMMANDS,
    *doctor.COMMANDS,
]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command and all of its parts."""
    parser = Parser(
        prog='cmae',
        description='Contrastive Masked Autoencoders: pre-training, transfer '
        'and evaluation of vision transformers.',
        epilog='Configs are files, or packaged ones by their name: '
        'cmae train cmae_vit-s_300e')
    parts = parser.add_subparsers(
        dest='command', metavar='COMMAND', required=True)
    for command in COMMANDS:
        command.add_to(parts)
    return parser


def main(arguments: Optional[List[str]] = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        arguments (List[str], optional): What follows ``cmae``. Defaults to
            the process's.
    """
    args = build_parser().parse_args(
        sys.argv[1:] if arguments is None else arguments)
    run(args)
