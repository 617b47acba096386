"""Report errors of a command in one sentence."""
import errno
import inspect
import os
import re
import sys
import traceback
from typing import Any, NoReturn

from ..config import walk
from ..dependencies import framework_command, suggest


def fail(error: Exception, prog: str, debug: bool = False) -> NoReturn:
    """Print the current error and exit with status 1.

    Errors in arguments, data, files, libraries and devices are printed as one
    sentence on standard error. Other errors are bugs and printed with their
    traceback.

    Args:
        error (Exception): The error.
        prog (str): Start of the sentence, for example 'cmae train'.
        debug (bool): Whether to print the traceback of every error, as the
            environment variable ``CMAE_DEBUG`` does. Defaults to False.
    """
    sentence = explain(error)
    if sentence is None or debug or os.environ.get('CMAE_DEBUG'):
        traceback.print_exc()
    sys.stdout.flush()
    text = sentence or f'{type(error).__name__}: {error}'
    alone = os.environ.get('WORLD_SIZE', '1') == '1'
    name = prog if alone else f'{prog} (rank {os.environ.get("RANK", "0")})'
    print(f'{name}: {text}', file=sys.stderr, flush=True)
    sys.exit(1)


def explain(error: BaseException) -> str | None:
    """Return the sentence for an error, None for a bug."""
    text = _original_message(str(error))
    for explain_one in (_not_installed, _memory, _worker, _unknown_type,
                        _unknown_argument, _wrong_value):
        sentence = explain_one(error, text)
        if sentence:
            return sentence
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    # Assertions of the libraries, and errors of this project.
    if (isinstance(error, (ValueError, OSError, ImportError, AssertionError))
            or type(error).__module__.startswith('cmae_mm.')):
        return text.strip() or None
    return None


def _original_message(text: str) -> str:
    """Return the message of an error that a data worker has raised."""
    caught = re.match(r'Caught (\w+) in DataLoader worker process', text)
    if caught and 'Traceback' in text:
        # The last error in the worker's traceback, which may have several.
        *_, text = re.split(rf'^(?:\w+\.)*{caught[1]}: ', text.strip(),
                            flags=re.M)
    return text


def _not_installed(error: BaseException, text: str) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    # A missing module of this project, or a sentence of its own.
    if error.name.startswith('cmae_mm') or not text.startswith(
            ('No module ', 'import of ')):
        return None
    return (f'{error.name.partition(".")[0]} is not installed; install the '
            f'requirements of cmae_mm with `{framework_command()}`')


def _memory(error: BaseException, text: str) -> str | None:
    torch = sys.modules.get('torch')
    device = torch is not None and isinstance(
        error, torch.cuda.OutOfMemoryError)
    host = isinstance(error, MemoryError) or "can't allocate memory" in text
    if not device and not host:
        return None
    return (f'{"the device" if device else "this machine"} ran out of memory; '
            'use a smaller batch: in training, halve '
            'train_dataloader.batch_size and double '
            'optim_wrapper.accumulative_counts')


def _worker(error: BaseException, text: str) -> str | None:
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return ('this process has too many open files; raise the limit with '
                '`ulimit -n 65536`, or use fewer data workers')
    if not re.search(r'DataLoader worker .*(killed by signal|exited unexp)',
                     text):
        return None
    reason = text.strip().splitlines()[0].rstrip('. ')
    return (f'a data worker died ({reason}), usually because memory ran out; '
            'lower train_dataloader.num_workers')


def _unknown_type(error: BaseException, text: str) -> str | None:
    """Explain a ``type`` of the config that is not registered."""
    values = _values_of(error, 'registry')
    found = re.match(r'[\'"]?(\S+) is not in the [\w: ]+ registry', text)
    name = found[1] if found else ''
    if text.startswith('None is not a callable'):  # an optimizer's
        name = getattr(values.get('self'), 'optimizer_cfg', {}).get('type')
    if not name:
        return None
    registry, known, scoped = values.get('registry'), [], False
    while registry is not None:
        known += registry.module_dict
        child = registry.children.get('mmpretrain')
        if child is not None:  # the default scope may be another library's
            child.import_from_location()
            scoped = scoped or name in child.module_dict
        registry = registry.parent
    hint = f"; did you mean 'mmpretrain.{name}'?" if scoped else suggest(
        name.split('.')[-1], known) or (
        '; if the class is your own, add its module to custom_imports')
    return f'type={name!r} is not registered{hint}'


def _unknown_argument(error: BaseException, text: str) -> str | None:
    """Explain a keyword of the config that its class does not have."""
    if isinstance(error, TypeError) and text.endswith('takes no arguments'):
        return f'{text}, but the config has some; remove them'
    match = re.search(r"(?:(\w+)(?:\.__init__)?\(\) got an )?unexpected "
                      r"keyword argument '(\w+)'", text)
    values = _values_of(error, 'obj_cls')
    if not isinstance(error, TypeError) or not match or match[2] not in {
            key.split('.')[-1] for key, _ in walk(values.get('args'))}:
        return None
    kind = values['obj_cls']
    if match[2] not in values['args']:  # of a class that this one has made
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        kind = frame.f_globals.get(match[1], kind)
    return (f'{kind.__name__} has no argument {match[2]!r}'
            f'{suggest(match[2], _arguments(kind), 0.5)}')


def _wrong_value(error: BaseException, text: str) -> str | None:
    """Explain a setting of the config that has a wrong type."""
    values = _values_of(error, 'obj_cls')
    settings = {k: v for k, v in (values.get('args') or {}).items()
                if isinstance(v, (int, float, str, list, tuple))
                and k != 'params'}  # of an optimizer
    if not isinstance(error, TypeError) or not settings:
        return None
    return (f'{values["obj_cls"].__name__} cannot be built from its settings '
            f'({text}); check the types of ' + ', '.join(
                f'{k}={v!r}' for k, v in settings.items())
            + '; --debug prints the traceback')


def _values_of(error: BaseException, name: str) -> dict[str, Any]:
    """Return the variables of mmengine's innermost frame that has this one."""
    found: dict[str, Any] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if name in frame.f_locals and (
                frame.f_globals.get('__name__', '').startswith('mmengine.')):
            found = frame.f_locals
    return found


def _arguments(kind: Any) -> list[str]:
    """List the arguments of a class, with those of its bases."""
    bases = inspect.getmro(kind)[:-1] if inspect.isclass(kind) else [kind]
    return [name for base in bases
            for name in inspect.signature(base).parameters]
