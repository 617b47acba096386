"""End a command's mistakes in one sentence."""
import contextlib
import difflib
import inspect
import os
import re
import sys
import traceback
from typing import Any, List, NoReturn, Optional

from ..config import remembered, walk, where
from ..packaged import framework_command


def fail(error: Exception, prog: str, debug: bool = False,
         status: int = 1) -> NoReturn:
    """End the process for an error that is being handled.

    Mistakes of input, data, files, libraries and devices end in one sentence
    on standard error. Other errors are faults of the program and are printed
    with their traceback.

    Args:
        error (Exception): The error.
        prog (str): The beginning of the sentence, for example 'cmae train'.
        debug (bool): Whether to print the traceback of every error, as the
            environment variable ``CMAE_DEBUG`` does. Defaults to False.
        status (int): The exit status. Defaults to 1.
    """
    sentence = explain(error)
    if sentence is None or debug or os.environ.get('CMAE_DEBUG'):
        traceback.print_exc()
    sys.stdout.flush()
    text = sentence or f'{type(error).__name__}: {error}'
    alone = os.environ.get('WORLD_SIZE', '1') == '1'
    name = prog if alone else f'{prog} (rank {os.environ.get("RANK", "0")})'
    print(f'{name}: {text}', file=sys.stderr, flush=True)
    sys.exit(status)


def explain(error: BaseException) -> Optional[str]:
    """Return the sentence for an error, None for a fault of the program."""
    text = _original_message(str(error))
    for explain_one in (_not_installed, _memory, _worker, _unknown_type,
                        _unknown_argument):
        sentence = explain_one(error, text)
        if sentence:
            return sentence
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    # The libraries check values by assertions; errors of this project.
    if (isinstance(error, (ValueError, OSError, ImportError, AssertionError))
            or type(error).__module__.startswith('cmae_mm.')):
        return text.strip() or None
    return None


def _original_message(text: str) -> str:
    """Take the error's own message out of what torch and mmengine add."""
    caught = re.match(r'Caught (\w+) in DataLoader worker process', text)
    if caught and 'Traceback' in text:
        # The last error in the worker's traceback, which may have several.
        *_, text = re.split(rf'^(?:\w+\.)*{caught[1]}: ', text.strip(),
                            flags=re.M)
    # "class `CMAE` in cmae_mm/models/selfsup/cmae.py: ..."
    return re.sub(r'^(class `\w+` in \S+\.py: )+', '', text)


def _not_installed(error: BaseException, text: str) -> Optional[str]:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    # A missing module of this project, or a sentence of its own.
    if error.name.startswith('cmae_mm') or not text.startswith(
            ('No module ', 'import of ')):
        return None
    return (f'{error.name.partition(".")[0]} is not installed; install what '
            f'cmae_mm needs with `{framework_command()}`')


def _memory(error: BaseException, text: str) -> Optional[str]:
    torch = sys.modules.get('torch')
    device = torch is not None and isinstance(
        error, torch.cuda.OutOfMemoryError)
    host = isinstance(error, MemoryError) or "can't allocate memory" in text
    if not device and not host:
        return None
    cfg = remembered.get('cfg') or {}
    loader = cfg.get('train_dataloader')
    sentence = ('the device' if device else 'this machine'
                ) + ' ran out of memory'
    if loader:
        sentence += (
            f', with train_dataloader.batch_size={loader.get("batch_size")} '
            'on each process; halve it and double '
            'optim_wrapper.accumulative_counts, which keeps the batch')
    if cfg.get('work_dir'):
        sentence += f'; what was saved in {cfg["work_dir"]} is intact'
    return sentence


def _worker(error: BaseException, text: str) -> Optional[str]:
    if not re.search(r'DataLoader worker .*(killed by signal|exited unexp)',
                     text):
        return None
    reason = text.strip().splitlines()[0].rstrip('. ')
    return (f'a data worker died ({reason}); mostly memory ran out: lower '
            'train_dataloader.num_workers')


def _unknown_type(error: BaseException, text: str) -> Optional[str]:
    """Explain a ``type`` of the config that no registry has."""
    # The second is mmengine's message for an optimizer.
    if not re.search(
            r'is not in the [\w: ]+ registry|None is not a callable', text):
        return None
    known = _registered()
    for key, value in walk(remembered.get('cfg') or {}):
        name = value.split('.')[-1] if isinstance(value, str) else ''
        if (key.split('.')[-1] == 'type' and name and name not in known
                and (name in text or key.startswith('optim_wrapper.'))):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else (
                '; if it is your own, name its module in custom_imports')
            return f'{_place(key, value)}there is no {value!r}{hint}'
    return None


def _unknown_argument(error: BaseException, text: str) -> Optional[str]:
    """Explain a keyword of the config that its class does not take."""
    match = re.search(
        r"(?:(\w+)(?:\.__init__)?\(\) got an )?unexpected keyword argument "
        r"'(\w+)'", text)
    if not isinstance(error, TypeError) or not match:
        return None
    cfg: Any = remembered.get('cfg') or {}
    values = dict(walk(cfg))
    key = next((k for k in values if k.split('.')[-1] == match[2]), None)
    if key is None:
        return None
    kind = values.get(f'{key.rpartition(".")[0]}.type', match[1])
    if isinstance(kind, str):
        name = kind
        kind = _find_class(kind.split('.')[-1])
    else:
        name = getattr(kind, '__name__', '')
    near = difflib.get_close_matches(match[2], _arguments(kind), n=1,
                                     cutoff=0.5)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    return f'{_place(key)}{name} has no argument {match[2]!r}{hint}'


def _place(key: str, value: Any = None) -> str:
    """Name a key of the config and the file that it comes from."""
    source = where(remembered['cfg'], remembered['options'], key, value)
    return f'{source}: {key}: '


def _find_class(name: str) -> Any:
    """Find a class or function of the libraries by its name."""
    modules = [module for path, module in list(sys.modules.items())
               if path.startswith(('cmae_mm', 'mm', 'torch.optim'))]
    return next((vars(module)[name] for module in modules
                 if callable(vars(module).get(name))), None)


def _registered() -> List[str]:
    """List the names in all imported registries."""
    from mmengine.registry import Registry
    found: List[str] = []
    for module in list(sys.modules.values()):
        if getattr(module, '__name__', '').endswith('.registry'):
            for value in vars(module).values():
                if isinstance(value, Registry):
                    found += value.module_dict
    return found


def _arguments(kind: Any) -> List[str]:
    """List the arguments of a class, with those of its bases."""
    names: List[str] = []
    bases = inspect.getmro(kind) if inspect.isclass(kind) else ()
    for base in bases or [kind]:
        maker: Any = vars(base).get('__init__') if bases else base
        with contextlib.suppress(TypeError, ValueError):
            names += inspect.signature(maker).parameters
    return [n for n in names if n not in ('self', 'args', 'kwargs')]
