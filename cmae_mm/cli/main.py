"""Entry point of the command ``cmae`` and its table of commands."""
import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ..dependencies import suggest
from ..version import __version__
from .command import Parser, add_command, read_docstring, run

# Function of each command in `apis`, in groups of `cmae --help`.
GROUPS: dict[str, dict[str, str]] = {
    'pre-train and fine-tune': {
        'pretrain': 'training:pretrain', 'finetune': 'finetuning:finetune',
        'predict': 'finetuning:predict', 'train': 'training:train',
        'test': 'training:test'},
    'evaluate': {
        'knn': 'evaluation:knn', 'linear': 'evaluation:linear',
        'low-shot': 'evaluation:low_shot', 'frozen': 'evaluation:frozen',
        'dense-knn': 'evaluation:dense_knn',
        'dense-linear': 'evaluation:dense_linear',
        'embed': 'embedding:embed', 'study': 'study:study'},
    'visualize': {
        'views': 'pictures:views', 'reconstruct': 'pictures:reconstruct',
        'attention': 'pictures:attention', 'features': 'pictures:features',
        'map': 'pictures:map_images', 'nearest': 'pictures:nearest',
        'report': 'pictures:report'},
    'checkpoints': {
        'export': 'conversion:export', 'import': 'conversion:import_'},
    'data': {
        'stats': 'data:stats', 'store': 'data:store',
        'shards': 'data:shards', 'splits': 'data:splits'},
    'check': {
        'doctor': 'environment:doctor',
        'batch-size': 'training:batch_size'},
}
COMMANDS: dict[str, str] = {
    name: path for group in GROUPS.values() for name, path in group.items()}


def function_of(name: str) -> Callable[..., Any]:
    """Import the function of a command."""
    module, _, function = COMMANDS[name].partition(':')
    return getattr(importlib.import_module(f'cmae_mm.apis.{module}'),
                   function)


def _summary(name: str) -> str:
    text = read_docstring(function_of(name)).summary
    return text[0].lower() + text[1:]


def list_commands() -> str:
    """List all commands in their groups, a line each."""
    width = max(map(len, COMMANDS))
    lines: list[str] = []
    for heading, names in GROUPS.items():
        lines += ['', f'{heading}:']
        lines += [f'  {name:<{width}}  {_summary(name)}' for name in names]
    return '\n'.join(lines)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of the command.

    Args:
        only (str, optional): The command to add; others are not imported.
            Defaults to None, all.
    """
    parser = Parser(
        prog='cmae',
        usage='cmae COMMAND ...',
        description='Contrastive Masked Autoencoders: pre-training, transfer '
        'and evaluation of\nvision transformers.\n'
        f'{"" if only else list_commands()}',
        epilog='`cmae COMMAND --help` shows the options and an example. A '
        'config is a file, or the name\nof a packaged one: cmae train '
        'cmae_vit-s_300e')
    parser.add_argument(
        '--version', action='version', version=f'cmae_mm {__version__}')
    parts = parser.add_subparsers(
        dest='command', metavar='COMMAND', prog=parser.prog, required=True,
        help=argparse.SUPPRESS)
    for name in [only] if only else COMMANDS:
        add_command(parts, name, function_of(name))
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; end the process at an error."""
    # Options before the command have no values.
    word = next((a for a in arguments if not a.startswith('-')), None)
    completes = '_ARGCOMPLETE' in os.environ  # a shell completes a line
    parser = build_parser(
        word if word in COMMANDS and not completes else None)
    if completes:
        import argcomplete  # of setup.cfg's extra='completion'
        argcomplete.autocomplete(parser)
    if not arguments:
        parser.print_help()
        sys.exit(2)
    if word is not None and word not in COMMANDS:
        hint = suggest(word, COMMANDS) or (
            f'; choose from {", ".join(COMMANDS)}')
        parser.error(f'unknown command {word!r}{hint}')
    return parser.parse_args(arguments)


class _OutputFile(io.FileIO):
    """Standard output or error that ignores failed writes."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or drop the data if the output is closed or full."""
        try:
            return super().write(data) or 0
        except OSError as error:
            self.failure = error
            return len(memoryview(data).cast('B'))


def open_outputs() -> list[_OutputFile]:
    """Ignore failed writes to standard output and error.

    A closed pipe and a full disk do not stop the command. Names that are not
    UTF-8 are escaped. Streams that a caller has replaced are kept.

    Returns:
        list[_OutputFile]: The files below the new streams.
    """
    files = []
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        stream = getattr(sys, name)
        if stream is None:  # closed; the next file would get its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        elif stream is not getattr(sys, f'__{name}__'):
            continue
        file = _OutputFile(number, 'w', closefd=False)
        files.append(file)
        setattr(sys, name, io.TextIOWrapper(
            io.BufferedWriter(file), errors='backslashreplace',
            encoding=getattr(stream, 'encoding', 'utf-8'),
            line_buffering=getattr(stream, 'line_buffering', True),
            write_through=getattr(stream, 'write_through', False)))
    return files


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        arguments (list[str], optional): Words after ``cmae``. Defaults to
            the process's.
    """
    files = open_outputs()
    try:
        run(parse(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as stop:
        sys.stdout.flush()
        for file in files:
            failed = file.failure and file.failure.errno != errno.EPIPE
            if failed and not stop.code:
                sys.exit(f'cmae: the output is incomplete: {file.failure}')
        raise
