"""Ending a command's mistakes in one sentence."""
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
    on standard error. What looks like a fault of the program is shown in
    full, as is everything where that is asked for.

    Args:
        error (Exception): The error.
        prog (str): What the sentence begins with, for example 'cmae train'.
        debug (bool): Whether to show where it comes from; the environment
            variable ``CMAE_DEBUG`` does the same. Defaults to False.
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
    """Give the sentence for an error; None for a fault of the program."""
    text = _last_cause(str(error))
    for explain_one in (_not_installed, _memory, _worker, _unknown_type,
                        _unknown_optimizer, _unknown_argument, _wrong_value):
        sentence = explain_one(error, text)
        if sentence:
            return sentence
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    if isinstance(error, (ValueError, OSError, ImportError)):
        return text.strip()
    # Classes of this project that say what is wrong.
    if type(error).__module__.startswith('cmae_mm.'):
        return text.strip()
    return None


def _last_cause(text: str) -> str:
    """Take the error itself out of what a data worker or mmengine wraps."""
    caught = re.match(r'Caught (\w+) in DataLoader worker process', text)
    if caught and 'Traceback' in text:
        lines = text.strip().splitlines()
        # Errors of any name: the last one is that which was caught.
        starts = [i for i, line in enumerate(lines)
                  if re.match(rf'(\w+\.)*{caught[1]}: ', line)]
        if starts:
            text = '\n'.join(lines[starts[-1]:]).partition(': ')[2]
    # "class `CMAE` in cmae_mm/models/selfsup/cmae.py: ..."
    while re.match(r'class `\w+` in \S+\.py: ', text):
        text = text.split(': ', 1)[1]
    return text


def _not_installed(error: BaseException, text: str) -> Optional[str]:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    # Of ours, or said by a sentence of ours.
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
    cfg = remembered.get('cfg')
    loader = cfg.get('train_dataloader') if cfg is not None else None
    what = 'the device ran' if device else 'this machine ran'
    sentence = f'{what} out of memory'
    if loader:
        sentence += (
            f', with train_dataloader.batch_size={loader.get("batch_size")} '
            'on each process; halve it and double '
            'optim_wrapper.accumulative_counts, which keeps the batch')
    if cfg is not None and cfg.get('work_dir'):
        sentence += f'; what was saved in {cfg.work_dir} is intact'
    return sentence


def _worker(error: BaseException, text: str) -> Optional[str]:
    killed = re.search(r'DataLoader worker .*(killed by signal|exited unexp)',
                       text)
    if not killed:
        return None
    return (f'a data worker died ({_first_line(text)}); mostly memory ran out:'
            ' lower train_dataloader.num_workers')


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip('. ')


def _unknown_type(error: BaseException, text: str) -> Optional[str]:
    if not isinstance(error, KeyError):
        return None
    match = re.search(r'([\w.]+) is not in the ([\w: ]+?) registry', text)
    if not match:
        return None
    name, registry = match.groups()
    near = difflib.get_close_matches(
        name.split('.')[-1], _registered(registry.split('::')[-1]), n=1)
    hint = f'; did you mean {near[0]!r}?' if near else (
        '; if it is your own, name its module in custom_imports')
    return f'{_place(name)}there is no {name!r}{hint}'


def _unknown_optimizer(error: BaseException, text: str) -> Optional[str]:
    # What mmengine says of a type that it does not find among optimizers.
    cfg = remembered.get('cfg')
    if 'None is not a callable object' not in text or cfg is None:
        return None
    for key, value in walk(cfg.get('optim_wrapper') or {}, 'optim_wrapper.'):
        if key.endswith('.type') and isinstance(value, str):
            if value.split('.')[-1] not in _registered():
                return _unknown_type(
                    KeyError(), f'{value} is not in the optimizer registry')
    return None


def _registered(kind: Optional[str] = None) -> List[str]:
    """List the names in all libraries' registries, of one kind or all."""
    from mmengine.registry import root
    names: List[str] = []
    for module in list(sys.modules.values()):
        if not getattr(module, '__name__', '').endswith('.registry'):
            continue
        for value in vars(module).values():
            if isinstance(value, type(root.MODELS)) and (
                    kind in (None, value.name)):
                names += value.module_dict
    return names


def _place(value: Any) -> str:
    """Say where in the config a value stands, as far as that is certain."""
    cfg = remembered.get('cfg')
    if cfg is None:
        return ''
    keys = [k for k, v in walk(cfg) if type(v) is type(value) and v == value]
    if not keys:
        return ''
    return f'{where(cfg, remembered["options"], keys[0], value)}: {keys[0]}: '


def _unknown_argument(error: BaseException, text: str) -> Optional[str]:
    if not isinstance(error, TypeError):
        return None
    match = re.search(r"unexpected keyword argument '(\w+)'", text)
    cfg = remembered.get('cfg')
    if not match or cfg is None:
        return None
    name = match.group(1)
    keys = [k for k, _ in walk(cfg) if k.split('.')[-1] == name]
    if not keys:
        return None
    parent = keys[0].rpartition('.')[0]
    node = cfg
    for part in parent.split('.') if parent else []:
        node = node[int(part) if part.isdigit() else part]
    named = re.search(r'(\w+)(?:\.__init__)?\(\) got an unexp', text)
    kind = node.get('type') or (named.group(1) if named else parent)
    near = difflib.get_close_matches(name, _arguments(kind), n=1, cutoff=0.5)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    of = kind if isinstance(kind, str) else getattr(kind, '__name__', parent)
    return (f'{where(cfg, remembered["options"], keys[0])}: {keys[0]}: {of} '
            f'has no argument {name!r}{hint}')


def _find_class(name: str) -> Any:
    """Find a class or function of the libraries by its name."""
    name = name.split('.')[-1]
    for module in list(sys.modules.values()):
        room = getattr(module, '__name__', '').split('.')[0]
        if room in ('cmae_mm', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain',
                    'mmseg'):
            found = getattr(module, name, None)
            if callable(found):
                return found
    import torch
    return getattr(torch.optim, name, None)


def _arguments(kind: Any) -> List[str]:
    """List the arguments of a class, its bases' too, or of a function."""
    if isinstance(kind, str):
        kind = _find_class(kind)
    if kind is None:
        return []
    bases = inspect.getmro(kind) if inspect.isclass(kind) else ()
    makers = [vars(b)['__init__'] for b in bases if '__init__' in vars(b)
              ] or [kind]
    names: List[str] = []
    for maker in makers:
        try:
            names += inspect.signature(maker).parameters
        except (TypeError, ValueError):
            continue
    return [n for n in names if n not in ('self', 'args', 'kwargs')]


def _wrong_value(error: BaseException, text: str) -> Optional[str]:
    """Explain assertions, by which the libraries check values."""
    return text.strip() if isinstance(error, AssertionError) else None
