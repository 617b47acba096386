"""The command ``cmae``: table of commands, parser, and run."""
import argparse
import collections.abc
import errno
import gc
import importlib
import inspect
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import UnionType
from typing import (Annotated, Any, Literal, NamedTuple, NoReturn, Union,
                    get_args, get_origin)

from ..apis.arguments import (argument_types, check_arguments,
                              describe_mismatch, load_libraries, matches_type,
                              metadata_of)
from ..dependencies import suggest
from ..version import __version__

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
_WIDTH = 79


class Parser(argparse.ArgumentParser):
    """``ArgumentParser`` without abbreviations of options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False, **kwargs)

    def parse_known_args(self,
                         args: Any = None,
                         namespace: Any = None) -> Any:
        """Parse; an unknown argument is an error with the nearest names."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(self._describe_unknown(rest))
        return namespace, rest

    def _describe_unknown(self, words: list[str]) -> str:
        for word in words:
            name = word.partition('=')[0]
            is_known = name in self._option_string_actions  # behind "--"
            if name.startswith('-') and not is_known:
                options = [o for action in self._actions
                           if action.help != argparse.SUPPRESS
                           for o in action.option_strings]
                return f'unknown option {name}{suggest(name, options, 0.7)}'
        return f'unexpected argument {words[0]!r}'

    def error(self, message: str) -> NoReturn:
        """End with one sentence and exit status 2."""
        message = message.removeprefix('argument ')
        end = '' if message.endswith('?') else ';'
        self.exit(2, f'{self.prog}: {message}{end} see {self.prog} --help\n')


class Docstring(NamedTuple):
    """Parts of a Google docstring that appear in the help."""

    summary: str
    description: str
    examples: list[str]
    arguments: dict[str, str]


def read_docstring(function: Callable[..., Any]) -> Docstring:
    """Read a docstring: summary, text, shell examples and arguments."""
    text = re.sub(r':\w+:`~?(?:[\w.]*\.)?(\w+)`', r'\1',
                  inspect.getdoc(function) or '').replace('``', '`')
    head, *sections = re.split(r'^(?=[A-Z]\w+::?$)', text, flags=re.M)
    summary, _, description = head.strip().partition('\n\n')
    examples: list[str] = []
    arguments: dict[str, str] = {}
    for section in sections:
        if section.startswith('Example::'):
            examples = re.findall(r'^    \$ (.*(?:\\\n.*)*)', section, re.M)
        elif section.startswith('Args:'):
            for name, words in re.findall(
                    r'^    (\w+).*?: (.*(?:\n     .*)*)', section, re.M):
                arguments[name] = ' '.join(words.split())
    paragraphs = description.strip().split('\n\n')
    return Docstring(
        ' '.join(summary.split()).rstrip('.'),
        '\n\n'.join(textwrap.fill(' '.join(p.split()), _WIDTH,
                                  break_long_words=False)
                    for p in paragraphs),
        [re.sub(r'\s*\\\n\s*', ' ', e) for e in examples], arguments)


def add_command(parts: Any, name: str, function: Callable[..., Any]) -> None:
    """Add a function to the subparsers as a command.

    Args:
        parts (argparse._SubParsersAction): The subparsers.
        name (str): The command's name.
        function (Callable): A function decorated with
            ``apis.arguments.command``.
    """
    doc = read_docstring(function)
    examples = '\n'.join(f'  {line}' for line in doc.examples)
    parser = parts.add_parser(
        name, description=f'{doc.summary}.\n\n{doc.description}'.strip(),
        epilog=f'for example:\n{examples}')
    for parameter in inspect.signature(function).parameters.values():
        _add_argument(
            parser, parameter, argument_types(function)[parameter.name],
            doc.arguments[parameter.name].replace('%', '%%'),
            function.declaration.required)  # type: ignore
    parser.usage = ' '.join(
        [parser.prog, *_required_usage(parser), '[OPTIONS]'])
    group = parser.add_argument_group('output')
    group.add_argument(
        '--json', action='store_true',
        help='Print the result as JSON in the last line.')
    group.add_argument(
        '--debug', action='store_true',
        help='Print the full traceback of errors, like CMAE_DEBUG=1.')
    parser.set_defaults(chosen=function)


def _add_argument(parser: argparse.ArgumentParser,
                  parameter: inspect.Parameter, hint: Any, help: str,
                  required: Iterable[str]) -> None:
    """Add one argument of a function to a parser."""
    name, default = parameter.name, parameter.default
    option, off = (f'--{start}{name.replace("_", "-")}'
                   for start in ('', 'no-'))
    if _strip_annotated(hint) is bool:
        parser.add_argument(
            off if default else option, dest=name, default=default,
            action='store_false' if default else 'store_true', help=help)
        return
    kwargs = dict(help=help, **_argparse_kwargs(_without_none(hint), name))
    is_needed = default is inspect.Parameter.empty
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        parser.add_argument(name, nargs=None if is_needed else '?', **{
            **kwargs, 'metavar': name.upper()})
        return
    if is_needed and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        parser.add_argument(name, **{**kwargs, 'metavar': name.upper()})
        return
    if 'action' in kwargs:  # it extends the default
        default = list(default or ())
    target: Any = parser
    if bool in get_args(hint):
        target = parser.add_mutually_exclusive_group()
        target.add_argument(
            off, dest=name, action='store_const', const=False,
            help=f'The opposite of {option}.')
        kwargs.update(nargs='?', const=True)
    target.add_argument(
        option, default=None if is_needed else default,
        required=is_needed or name in required, **kwargs)
    if name == 'launcher':  # torch.distributed.launch passes the rank
        parser.add_argument('--local_rank', '--local-rank', type=int,
                            help=argparse.SUPPRESS)


def _argparse_kwargs(hint: Any, name: str) -> dict[str, Any]:
    """Choose ``nargs``, ``type`` and ``metavar`` of an argument."""
    bare = _strip_annotated(hint)
    origin, parts = get_origin(bare), get_args(bare)
    is_list = origin is collections.abc.Sequence
    metavars = [m.metavar for m in metadata_of(hint) if hasattr(m, 'metavar')]
    metavar = metavars[0] if metavars else {int: 'N', float: 'VALUE'}.get(
        _strip_annotated(parts[0]) if is_list else bare, name.upper())
    if any(get_origin(p) is collections.abc.Mapping for p in parts):
        return dict(nargs='+', action='extend', metavar='KEY=VALUE')
    if origin is Literal:
        return dict(type=_converter(hint), choices=parts)
    if origin is tuple:
        return dict(type=_converter(parts[0]), nargs=len(parts),
                    metavar=metavar)
    if is_list:
        read = _converter(parts[0])
        if get_origin(parts[0]) is Literal:
            return dict(metavar='NAME,NAME', type=lambda text: [
                read(word) for word in text.split(',') if word])
        return dict(type=read, nargs='+', metavar=metavar)
    if any(get_origin(p) is tuple for p in parts):
        words: Any = Union[tuple(  # noqa: UP007  # a word, or several
            get_args(p)[0] if get_origin(p) is tuple else p for p in parts)]
        return dict(type=_converter(words), nargs='+', metavar='VALUE')
    return dict(type=_converter(hint), metavar=metavar)


def _strip_annotated(hint: Any) -> Any:
    """Return the type inside of ``Annotated``."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _without_none(hint: Any) -> Any:
    """Return the type inside of ``Optional``."""
    parts = [p for p in get_args(hint) if p is not type(None)]
    if get_origin(hint) not in (Union, UnionType) or (
            len(parts) == len(get_args(hint))):
        return hint
    return Union[tuple(parts)]  # noqa: UP007  # noqa: UP007


def _converter(hint: Any) -> Callable[[str], Any]:
    """Return a function that converts text to a value of the type."""

    def read(text: str) -> Any:
        for kind in (int, float, str):
            try:
                value = kind(text)
            except ValueError:
                continue
            if matches_type(value, hint):
                return value
        raise argparse.ArgumentTypeError(describe_mismatch(text, hint))

    return read


def _required_usage(parser: argparse.ArgumentParser) -> list[str]:
    """List the required arguments for the usage line."""
    words = []
    for action in parser._actions:
        metavar = action.metavar or action.dest.upper()
        value = metavar if isinstance(metavar, str) else ' '.join(metavar)
        if action.required:
            words.append(' '.join([*action.option_strings[:1], value]))
        elif not action.option_strings:
            words.append(f'[{value}]')
    return words


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
        result = run_command(args)
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
    end_process_group()
    sys.exit(status)


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Check a command line and run its function; errors are raised.

    Args:
        args (argparse.Namespace): With ``chosen``, the command.

    Returns:
        dict[str, Any]: The result, by name, which ``--json`` prints.
    """
    function = args.chosen
    values = {name: _unwrap(getattr(args, name), hint)
              for name, hint in argument_types(function).items()}
    values = check_arguments(function, values)
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
    return value[0] if one and not matches_type(value, hint) else value


def end_process_group() -> None:
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
