"""Commands as typed functions, and checks of their arguments.

A command is a function of this package with the decorator :func:`command`,
listed in ``cli/main.py``. Each argument is declared once, in the signature and
the docstring. ``cli/main.py`` builds the command line from it, and calls
from Python are checked in the same way::

    @command(libraries=False)
    def splits(data: Data, *, percent: Sequence[Percent] = (1., 10.),
               seed: Count = 0, out: OutputFolder | None = None) -> dict:

- The summary is the line of the command in ``cmae --help``. The text,
  ``Args:`` and the lines of ``Example::`` that start with ``$ `` are its help.
- No default: positional, or a required option where keyword-only.
- Default, positional-only: an optional positional argument.
- Default: ``--the-name``. False: a flag. True: the flag ``--no-the-name``.
- ``Literal``: choices. ``Sequence``: several words. ``Optional``: not given.
- The types below (``Size``, ``Data``, ``OutputFile``, ...) add bounds of
  numbers and checks of paths, which run before all imports. Those with a
  :class:`Text` (``BatchSize``, ``Encoder``, ...) also document the argument,
  which is then omitted from docstrings.
- Options of several commands are the fields of a dataclass, which
  ``command(options=...)`` puts in the place of ``**options``.
- Modules of commands do not import torch or mmpretrain at the top; functions
  do. ``libraries='framework'`` is for commands that need mmpretrain but not
  all registered classes of this project, False for commands that need neither.
- The function prints text for users. ``--json`` also prints its result: a
  dict, a NamedTuple, or an object with ``as_json()``.
"""
import collections.abc
import dataclasses
import functools
import inspect
import math
import os
import re
import signal
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import (Annotated, Any, Literal, NamedTuple, TypeVar, Union,
                    get_args, get_origin)

from ..config import ArgumentError as ArgumentError  # for all commands
from ..config import Overrides as Overrides
from ..config import check_pairs
from ..dependencies import (explain_missing, find_checkpoint, find_config,
                            import_framework, quiet_imports, require, suggest)
from ..files import check_output

PathLike = str | os.PathLike
# Argument for random weights instead of a checkpoint.
RANDOM = 'random'
# Suffixes of the pictures that commands draw.
PICTURES = ('.png', '.jpg', '.jpeg', '.webp')

_Function = TypeVar('_Function', bound=Callable[..., Any])


class Range(NamedTuple):
    """Bounds of a number.

    Args:
        low (float): The smallest number.
        high (float): The largest number. Defaults to infinity.
        above (bool): Whether ``low`` itself is excluded. Defaults to False.
    """

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a number is within the bounds."""
        return (value > self.low if self.above else value >= self.low) and (
            value <= self.high)

    def __str__(self) -> str:
        text = (f'above {self.low:g}' if self.above else
                f'of {self.low:g} or more')
        return text if self.high == math.inf else (
            f'{text} and at most {self.high:g}')


class Metavar(NamedTuple):
    """Names of an option's values in the help."""

    metavar: tuple[str, ...]


class Text(NamedTuple):
    """Documentation of an argument of several commands.

    The text is added to the docstring of each command, with the default unless
    the text contains it.
    """

    text: str


class _Path:
    """Check of a path that a command reads or writes."""

    metavar = 'FILE'
    is_output = False

    def check(self, path: PathLike) -> None:
        """Raise an error if the path cannot be used."""


class _Data(_Path):

    def check(self, path: PathLike) -> None:
        file = Path(path)
        if not file.is_dir() and not file.is_file():
            what = 'is not a folder or file' if file.exists() else (
                'does not exist')
            raise ArgumentError(
                f'the data folder {str(path)!r} {what}; name a folder of '
                'images, a list, a store or shards')


class _Checkpoint(_Path):

    def __init__(self, random: bool = False) -> None:
        self.random = random

    def check(self, path: PathLike) -> None:
        if '://' in str(path) or (self.random and path == RANDOM):
            return
        why = explain_missing(find_checkpoint(path))
        if why:
            raise ArgumentError(why)


class _Config(_Path):

    metavar = 'CONFIG'

    def check(self, path: PathLike) -> None:
        if path == RANDOM or Path(path).suffix in (
                '.pth', '.pt', '.safetensors', '.ckpt'):
            raise ArgumentError(
                f'{path} is not a config; CONFIG comes before CHECKPOINT')
        find_config(str(path))


class _Stats(_Path):

    def check(self, path: PathLike) -> None:
        if not Path(path).is_file():
            raise ArgumentError(
                f'the file of image statistics {str(path)!r} does not exist; '
                f'write it with `cmae stats DATA --out {path}`')


class Output(_Path):
    """A file or folder that a command writes.

    Args:
        *suffixes (str): Allowed suffixes of the file. Defaults to any.
        is_folder (bool): Whether it is a folder. Defaults to False.
    """

    is_output = True

    def __init__(self, *suffixes: str, is_folder: bool = False) -> None:
        self.suffixes, self.is_folder = suffixes, is_folder
        self.metavar = 'DIR' if is_folder else 'FILE'

    def check(self, path: PathLike) -> None:
        """Check the suffix, and that the path can be written.

        Raises:
            ArgumentError: If the suffix is another.
            OSError: If the path cannot be written.
        """
        if self.suffixes and Path(path).suffix.lower() not in (
                self.suffixes):
            raise ArgumentError(
                f'the output must be a {" or ".join(self.suffixes)} file, '
                f'but got {str(path)!r}')
        check_output(path, is_folder=self.is_folder)


# Types of arguments that several commands have.
Count = Annotated[int, Range(0)]
Size = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, above=True)]
Percent = Annotated[float, Range(0, 100, above=True)]
Data = Annotated[PathLike, _Data()]
# Files, folders and other sources of images, which the function opens.
Images = Annotated[PathLike, _Path()]
Checkpoint = Annotated[PathLike, _Checkpoint()]
CheckpointOrRandom = Annotated[PathLike, _Checkpoint(random=True)]
ConfigName = Annotated[PathLike, _Config()]
Stats = Annotated[PathLike, _Stats()]
OutputFile = Annotated[PathLike, Output()]
OutputFolder = Annotated[PathLike, Output(is_folder=True)]
# Types that document the argument, too.
Encoder = Annotated[Literal['online', 'target', 'teacher', 'student'], Text(
    'Encoder of the checkpoint: online is the trained one, target its moving '
    'average. DINO and iBOT have teacher and student, and online is the '
    'teacher. Defaults to online.')]
Pool = Annotated[Literal['mean', 'cls'], Text(
    'Feature of an image: mean of the patch tokens, or class token.')]
Layers = Annotated[Sequence[int], Text(
    'Transformer layers whose features are concatenated, counted from 1, or '
    'from the end by negative numbers. The final norm, if there is one, is '
    "applied to each. Defaults to the encoder's output.")]
ImgSize = Annotated[Size | tuple[Size, Size], Text(
    'Side of square images in pixels, or height and width. Defaults to the '
    "checkpoint's.")] | None
NumHeads = Annotated[Size, Text(
    'Number of attention heads. Only for checkpoints of other projects that '
    'do not record it.')] | None
BatchSize = Annotated[Size, Text('Images in a batch.')]
NumWorkers = Annotated[Count, Text(
    'Number of data workers. Defaults to one for each CPU core, at most '
    '8.')] | None
CfgOptions = Annotated[Overrides, Text(
    'Settings of the config to override. Nested keys are written with dots.')]
Launcher = Annotated[Literal['none', 'pytorch', 'slurm', 'mpi'], Text(
    'Job launcher.')]


class Declaration(NamedTuple):
    """Properties of a command in addition to its signature.

    Args:
        check (Callable, optional): Called with all arguments by name before
            anything heavy is imported. Raises for contradictions.
        libraries (bool | str): Libraries that the command line imports before
            the function runs: True, mmpretrain and all registered classes;
            'framework', mmpretrain; False, none.
        required (Sequence[str]): Options that the command line requires.
    """

    check: Callable[..., None] | None
    libraries: bool | str
    required: Sequence[str]


def command(check: Callable[..., None] | None = None,
            libraries: bool | str = True,
            required: Sequence[str] = (),
            options: type | None = None
            ) -> Callable[[_Function], _Function]:
    """Make a function a command, and check its arguments in each call.

    Args:
        check (Callable, optional): See :class:`Declaration`.
        libraries (bool | str): See there. Defaults to True.
        required (Sequence[str]): See there. Defaults to none.
        options (type, optional): A dataclass whose fields are more options.
            The function receives them as ``**options``. Defaults to none.

    Returns:
        Callable: A decorator.
    """

    def decorate(function: Any) -> Any:
        signature = _signature(function, options)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            bound.arguments.update(check_arguments(checked, bound.arguments))
            return function(*bound.args, **bound.kwargs)

        checked.declaration = Declaration(  # type: ignore[attr-defined]
            check, libraries, required)
        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.__doc__ = _complete_docstring(function, signature)
        return checked

    return decorate


def _signature(function: Callable[..., Any],
               options: type | None) -> inspect.Signature:
    """Return a signature with the fields of a dataclass as options."""
    signature = inspect.signature(function)
    if options is None:
        return signature
    own = [p for p in signature.parameters.values()
           if p.kind is not p.VAR_KEYWORD]
    shared = [inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
        annotation=field.type) for field in dataclasses.fields(options)]
    return signature.replace(parameters=[*own, *shared])


def _complete_docstring(function: Callable[..., Any],
                        signature: inspect.Signature) -> str:
    """Add the arguments that a :class:`Text` documents to a docstring."""
    head, title, rest = (inspect.getdoc(function) or '').partition('Args:\n')
    own, gap, tail = rest.partition('\n\n')
    written = {entry.split(':')[0].strip(): entry
               for entry in re.findall(r'^    \w.*(?:\n     .*)*', own, re.M)}
    entries = []
    for name, parameter in signature.parameters.items():
        texts = [mark.text for mark in metadata_of(parameter.annotation)
                 if isinstance(mark, Text)]
        if name not in written and texts:
            default = '' if 'Defaults to' in texts[0] or (
                parameter.default in (None, (), inspect.Parameter.empty)
            ) else f' Defaults to {parameter.default}.'
            written[name] = textwrap.fill(
                f'{name}: {texts[0]}{default}', 79, initial_indent='    ',
                subsequent_indent='        ', break_on_hyphens=False)
        entries += [written[name]] if name in written else []
    return ''.join([head, title, '\n'.join(entries), gap, tail])


def load_libraries(which: bool | str = True) -> None:
    """Import the libraries of a command, and enable safe loading.

    Ctrl-C during the import ends the process immediately. There is nothing to
    save, and libraries may replace or drop an exception.

    Args:
        which (bool | str): See :class:`Declaration`. Defaults to True.
    """
    handled = (threading.current_thread() is threading.main_thread() and
               signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if handled:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        if which == 'framework':
            import_framework()
            with quiet_imports():
                import mmpretrain.models  # noqa: F401
        else:
            import cmae_mm
            cmae_mm.register()
        from ..checkpoints.read import load_only_safely
        load_only_safely()
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Add a message to Ctrl-C on what is saved and how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(message) from error


def argument_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a command's arguments."""
    return {name: parameter.annotation for name, parameter
            in inspect.signature(function).parameters.items()}


def check_arguments(function: Callable[..., Any],
                    values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values of a command's arguments.

    Args:
        function (Callable): The command.
        values (Mapping[str, Any]): Values by name.

    Returns:
        dict[str, Any]: The values, with ``~`` in paths expanded.

    Raises:
        ArgumentError: If a value is not allowed, or a file is missing.
        ConfigError: If an override is malformed.
        OSError: If an output cannot be written.
    """
    hints = argument_types(function)
    for name, value in values.items():
        if not matches_type(value, hints[name]):
            raise ArgumentError(
                f'{name} {describe_mismatch(value, hints[name])}')
        if _takes_path(hints[name]) and '' in _paths_in(value):
            raise ArgumentError(f'{name} is an empty path')
        if name == 'cfg_options' and not isinstance(value, Mapping):
            check_pairs(value or ())
    values = {name: _expand_home(value) if _takes_path(hints[name]) else value
              for name, value in values.items()}
    check_paths(hints, values)
    check = function.declaration.check  # type: ignore[attr-defined]
    if check is not None:
        check(**values)
    return values


def _takes_path(hint: Any) -> bool:
    """Return whether a type contains paths."""
    return hint is os.PathLike or any(map(_takes_path, get_args(hint)))


def _expand_home(value: Any) -> Any:
    """Expand ``~`` in a path, or in each path of a list."""
    if isinstance(value, (list, tuple)):
        return [_expand_home(path) for path in value]
    if isinstance(value, os.PathLike):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def check_paths(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check inputs and outputs by the types of arguments.

    Args:
        hints (Mapping[str, Any]): Types by name.
        values (Mapping[str, Any]): Values by name.

    Raises:
        ArgumentError: If a file is missing, or an output is an input.
        OSError: If an output cannot be written.
    """
    inputs: list[PathLike] = []
    outputs: list[PathLike] = []
    for name, value in values.items():
        for mark in metadata_of(hints[name]):
            for path in _paths_in(value) if isinstance(mark, _Path) else ():
                mark.check(path)
                (outputs if mark.is_output else inputs).append(path)
    _check_overwriting(inputs, outputs)


def _check_overwriting(inputs: Iterable[Any], outputs: Sequence[Any]) -> None:
    """Check that no output is an input, or an image in an input folder."""
    for path in inputs:
        for output in outputs:
            is_input = False
            with suppress(OSError, ValueError):  # one of them does not exist
                is_input = os.path.samefile(output, path) or (
                    _is_picture_in(output, path))
            if is_input:
                raise ArgumentError(
                    f'{output} is an input of this command and would be '
                    'overwritten; name another output')


def _is_picture_in(output: PathLike, folder: PathLike) -> bool:
    """Return whether a file is an image in a folder, at any depth."""
    file, above = (Path(p).resolve() for p in (output, folder))
    return file.is_file() and above in file.parents and (
        file.suffix.lower() in PICTURES)


def _paths_in(value: Any) -> list[Any]:
    if isinstance(value, (str, os.PathLike)):
        return [value]
    return [v for item in value for v in _paths_in(item)] if isinstance(
        value, (list, tuple)) else []


def metadata_of(hint: Any) -> list[Any]:
    """List the metadata of all ``Annotated`` in a type."""
    if get_origin(hint) is Literal:
        return []
    inner = [mark for part in get_args(hint) for mark in metadata_of(part)]
    return [*getattr(hint, '__metadata__', ()), *inner]


def matches_type(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type and within its bounds."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return matches_type(value, inner[0]) and all(
            mark.holds(value) for mark in inner[1:]
            if isinstance(mark, Range))
    if origin in (Union, UnionType):
        return any(matches_type(value, part) for part in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(
            inner) and all(map(matches_type, value, inner))
    if origin is collections.abc.Sequence:
        return isinstance(value, (list, tuple)) and all(
            matches_type(v, inner[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and (
            not isinstance(value, bool) and math.isfinite(value))
    return not isinstance(hint, type) or hint is Any or (
        origin is not None) or isinstance(value, hint)


def describe_mismatch(value: Any, hint: Any) -> str:
    """Describe the allowed values of an argument with an invalid value."""
    return (f'must be {describe(hint)}, but got {value!r}'
            f'{suggest(str(value), _choices(hint))}')


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def describe(hint: Any) -> str:
    """Describe a type in words, for messages."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [str(m) for m in inner[1:] if isinstance(m, Range)]
        return ' '.join([describe(inner[0]), *bounds])
    if origin is Literal:
        return 'one of ' + ', '.join(map(str, inner)) if (
            len(inner) > 1) else repr(inner[0])
    if origin in (Union, UnionType):
        words = [describe(p) for p in inner if p is not type(None)]
        return ' or '.join(dict.fromkeys(words))
    if origin is tuple:
        return f'{len(inner)} values, each {describe(inner[0])}'
    if origin is collections.abc.Sequence:
        return f'a list, each value {describe(inner[0])}'
    return {int: 'a whole number', float: 'a number',
            bool: 'True or False'}.get(hint, 'a path')


def check_onnx_file(out: PathLike) -> None:
    """Check that an ONNX file can be written.

    Raises:
        ArgumentError: If the ending is another.
        OSError: If it cannot be written.
        MissingLibrary: If a library for it is not installed.
    """
    Output('.onnx').check(out)
    for library in ('onnx', 'onnxscript', 'onnxruntime'):
        require(library, 'exporting to ONNX', 'onnx')
