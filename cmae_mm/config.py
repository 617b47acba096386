"""Reading a config and what a command line changes in it."""
import ast
import difflib
import inspect
import math
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Sequence,
    Tuple,
    Union,
)

from .dependencies import require_dense
from .packaged import find_config

if TYPE_CHECKING:
    from mmengine.config import Config

# Overrides of a config: values by dotted key, or KEY=VALUE each.
Overrides = Union[Mapping[str, Any], Sequence[str]]
# Top-level keys that mmengine, its sister libraries and this project read
# beside the runner's own arguments.
_OTHER_KEYS = {
    'activation_checkpointing', 'compile', 'custom_imports',
    'efficient_conv_bn_eval', 'evaluation', 'find_unused_parameters',
    'image_stats', 'load_partial', 'log_file', 'model_wrapper_cfg',
    'resume_from', 'runner_type', 'strategy', 'sync_bn', 'tta_model',
    'tta_pipeline'
}
# Variables that files of the ecosystem usually have: nothing reads them.
_VARIABLES = {
    'data_root', 'dataset_type', 'test_pipeline', 'train_pipeline',
    'val_pipeline'
}
# Names below a key where an unknown one would have no effect.
_NESTED = {
    'optim_wrapper.paramwise_cfg': (
        'base_total_layers', 'bias_decay_mult', 'bias_lr_mult',
        'bypass_duplicate', 'custom_keys', 'dcn_offset_lr_mult', 'decay_mult',
        'decay_rate', 'decay_type', 'dwconv_decay_mult', 'flat_decay_mult',
        'layer_decay_rate', 'lr_mult', 'norm_decay_mult', 'num_layers'),
    'optim_wrapper.clip_grad': (
        'clip_value', 'error_if_nonfinite', 'foreach', 'max_norm',
        'norm_type', 'type'),
    'default_hooks': (
        'checkpoint', 'logger', 'param_scheduler', 'runtime_info',
        'sampler_seed', 'step_seed', 'timer', 'visualization'),
}
# As near as this is a slip, or of the same letters: train_cfgs, trian_cfg.
_SLIP = 0.86

# What must be a number: a pattern of the key, whether it is whole, its least
# value, and whether that itself is allowed.
_NUMBERS: List[Tuple[str, bool, float, bool]] = [
    (r'train_cfg\.(max_epochs|max_iters|val_interval)', True, 1, True),
    (r'(train|val|test)_dataloader\.batch_size', True, 1, True),
    (r'(train|val|test)_dataloader\.num_workers', True, 0, True),
    (r'default_hooks\.logger\.interval', True, 1, True),
    (r'default_hooks\.checkpoint\.interval', True, -1, True),
    (r'randomness\.seed', True, 0, True),
    (r'model\.backbone\.mask_ratio', False, 0, False),
    (r'optim_wrapper\.accumulative_counts', True, 1, True),
    (r'optim_wrapper\.optimizer\.lr', False, 0, False),
    (r'optim_wrapper\.optimizer\.(weight_decay|momentum)', False, 0, True),
    (r'auto_scale_lr\.base_batch_size', True, 1, True),
]


# What later errors are explained with, see :func:`remember`.
remembered: Dict[str, Any] = {}


def remember(cfg: 'Config', pairs: Overrides = ()) -> None:
    """Let later errors be explained by a config.

    Args:
        cfg (Config): The config that the process works with.
        pairs (Mapping[str, Any] | Sequence[str]): Overrides, see
            :func:`parse_options`. Defaults to none.
    """
    remembered.update(
        cfg=cfg, options={pair.partition('=')[0]: None for pair in pairs})


class ConfigError(ValueError):
    """A config that cannot be meant so; the message says what to change."""


def check_pairs(pairs: Sequence[str]) -> None:
    """Check the form of ``--cfg-options``; needs no library.

    Args:
        pairs (Sequence[str]): ``KEY=VALUE`` each.

    Raises:
        ConfigError: If one is none, is a dict, or has unmatched brackets.
    """
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key:
            raise ConfigError(f'--cfg-options takes KEY=VALUE, but got '
                              f'{pair!r}')
        value = value.strip(' ')
        if _is_quoted(value):
            continue
        if re.match(r'(dict\(|\{(?!\{))', value):
            raise ConfigError(
                f'--cfg-options cannot take a dict, as in {pair!r}; '
                f'write its keys with dots: {key}.KEY=VALUE')
        if _is_list(value) and any(
                value.count(a) != value.count(b) for a, b in ('()', '[]')):
            raise ConfigError(f'--cfg-options: the brackets of {pair!r} '
                              'do not match')


def parse_options(pairs: Overrides) -> Dict[str, Any]:
    """Read ``--cfg-options``.

    Values are read as mmengine reads them: numbers, True, False, None, lists
    (``1,2`` or ``[1,2]``), tuples and text. Unlike there, spaces within text
    are kept, and text in quotes stays text whatever it holds.

    Args:
        pairs (Mapping[str, Any] | Sequence[str]): Values by dotted key, or
            ``KEY=VALUE`` each.

    Returns:
        Dict[str, Any]: Values by dotted key.

    Raises:
        ConfigError: See :func:`check_pairs`.
    """
    if isinstance(pairs, Mapping):
        return dict(pairs)
    check_pairs(pairs)
    found: Dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition('=')
        found[key] = _parse_value(value.strip(' '))
    return found


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in '\'"'


def _is_list(value: str) -> bool:
    return ',' in value or value[:1] in ('(', '[')


def _parse_value(value: str) -> Any:
    from mmengine.config import DictAction
    if _is_quoted(value) or value[:1] in ('(', '['):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    if _is_list(value):
        return DictAction._parse_iterable(value)
    return DictAction._parse_int_float_bool(value)


def quote_value(text: str) -> str:
    """Quote text that ``--cfg-options`` would read as something else.

    Args:
        text (str): A value, for example a path.

    Returns:
        str: What to write behind ``KEY=``.
    """
    is_word = re.fullmatch(r'[^\W\d][\w ./:@+-]*|[./][\w ./:@+-]*', text)
    special = text.lower() in ('true', 'false', 'none', 'inf', 'nan',
                               'infinity')
    with suppress(ValueError):
        float(text)
        special = True
    return text if is_word and not special and text == text.strip() else (
        repr(text))


def load_config(name: str, pairs: Overrides = ()) -> 'Config':
    """Read a config, apply overrides, and look for slips.

    Args:
        name (str): A file, or a packaged config's name.
        pairs (Mapping[str, Any] | Sequence[str]): Overrides, see
            :func:`parse_options`. Defaults to none.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is no such config.
        ConfigError: If it cannot be read, or a setting cannot be meant so.
        MissingLibrary: If it inherits a config of a library that is not
            installed.
    """
    from mmengine.config import Config
    from mmengine.config.utils import ConfigParsingError
    options = parse_options(pairs)
    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        # Of `_base_ = 'mmdet::...'`, which comes before custom_imports.
        for library, extra in (('mmdet', 'det'), ('mmseg', 'seg')):
            if library in str(error):
                require_dense(library, extra)
        raise ConfigError(f'{path} cannot be read: {error}') from error
    except (ConfigParsingError, SyntaxError, NameError, AttributeError,
            TypeError, KeyError, ImportError, OSError, ValueError,
            AssertionError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f'{path} cannot be read: {reason}') from error
    apply_options(cfg, options)
    return cfg


def apply_options(cfg: 'Config', options: Dict[str, Any]) -> None:
    """Apply overrides to a config, in place, and look for slips.

    What the file of image statistics says, where ``image_stats`` names one,
    is filled in last.

    Args:
        cfg (Config): The config.
        options (Dict[str, Any]): Values by dotted key.

    Raises:
        ConfigError: If an override does not fit into the config, or a setting
            cannot be meant so.
        ImageStatsError: If ``image_stats`` cannot be used.
        ImageStatsConflict: If a setting contradicts it.
    """
    for key, value in options.items():
        try:
            cfg.merge_from_dict({key: value})
        except (TypeError, KeyError, ValueError, AttributeError,
                IndexError) as error:
            raise ConfigError(
                f'--cfg-options {key} does not fit into {cfg.filename}: '
                f'{error}') from error
    check_keys(cfg, options)
    check_nested_keys(cfg, options)
    check_numbers(cfg, options)
    if cfg.get('image_stats') is not None:
        from .image_config import apply_image_stats
        apply_image_stats(cfg, list(options))


def known_keys() -> List[str]:
    """List the top-level keys that are no slips of others."""
    from mmengine.runner import Runner
    runner = set(inspect.signature(Runner.__init__).parameters) - {'self'}
    return sorted(runner | _OTHER_KEYS | _VARIABLES)


def check_keys(cfg: 'Config', options: Dict[str, Any]) -> None:
    """Look for misspelt top-level keys.

    A key that nothing here reads may be a variable of the file, or read by
    the user's own hooks. So it is refused only if it is next to a known key;
    an override that nothing here reads is warned of.

    Raises:
        ConfigError: If a key is a slip of another.
    """
    known = known_keys()
    for key in cfg:
        if key in known:
            continue
        near = slips_of(key, set(known) - _VARIABLES)
        if near:
            raise ConfigError(f'{where(cfg, options, key)}: there is no '
                              f'setting {key!r}; did you mean {near[0]!r}?')
    read = set(known) - _VARIABLES
    for option in options:
        key = option.split('.')[0]
        if key not in read:
            near = difflib.get_close_matches(key, read, n=1, cutoff=0.6)
            hint = f'; the nearest setting is {near[0]!r}' if near else ''
            # The user's own hooks may read it: not refused.
            print(f'warning: --cfg-options {option}: {key!r} is no setting of '
                  'the runner, and a variable of the file has been used '
                  f'before it is overridden{hint}', file=sys.stderr)
    if 'device' in cfg:
        raise ConfigError(
            f'{where(cfg, options, "device")}: device={cfg.device!r} is no '
            'setting: training takes the accelerator that there is and else '
            'the CPU; choose GPUs by the environment variable '
            'CUDA_VISIBLE_DEVICES')


def check_nested_keys(cfg: 'Config', options: Dict[str, Any]) -> None:
    """Look for slips where mmengine takes any name without a word.

    Raises:
        ConfigError: If a key is a slip of one that is read.
    """
    for prefix, known in _NESTED.items():
        node = cfg
        for part in prefix.split('.'):
            node = node.get(part) if hasattr(node, 'get') else None
        for key in node if isinstance(node, dict) else ():
            near = slips_of(key, known)
            if key not in known and near:
                raise ConfigError(
                    f'{where(cfg, options, f"{prefix}.{key}")}: {prefix} has '
                    f'no setting {key!r}; did you mean {near[0]!r}?')


def slips_of(key: str, known: Iterable[str]) -> List[str]:
    """Give the names that a name is a slip of, the nearest first.

    One that holds another or is held by it is no slip: train_pipeline1,
    models, custom_hook are variables that people have.
    """
    near = [k for k in known if sorted(k) == sorted(key)]
    near += difflib.get_close_matches(key, list(known), n=3, cutoff=_SLIP)
    return [k for k in near if k not in key and key not in k]


def check_numbers(cfg: 'Config', options: Dict[str, Any]) -> None:
    """Check the settings that must be numbers.

    Raises:
        ConfigError: If one is not, or is out of range.
    """
    for key, value in walk(cfg):
        for pattern, whole, least, allowed in _NUMBERS:
            if not re.fullmatch(pattern, key) or value is None:
                continue
            kinds = (int, ) if whole else (int, float)
            right = isinstance(value, kinds) and not isinstance(
                value, bool) and math.isfinite(value)
            if right and (value > least or (allowed and value == least)):
                continue
            kind = 'a whole number' if whole else 'a number'
            bound = f'of {least} or more' if allowed else f'above {least}'
            raise ConfigError(f'{where(cfg, options, key)}: {key} must be '
                              f'{kind} {bound}, but got {value!r}')


def walk(node: Any, prefix: str = '') -> Iterator[Tuple[str, Any]]:
    """Yield every value of a config, with its dotted key."""
    if hasattr(node, 'items'):
        pairs = node.items()
    elif isinstance(node, (list, tuple)):
        pairs = enumerate(node)
    else:
        return
    for key, value in pairs:
        path = f'{prefix}{key}'
        yield path, value
        yield from walk(value, f'{path}.')


def where(cfg: 'Config', options: Dict[str, Any], key: str,
          value: Any = None) -> str:
    """Say which file, or the command line, a dotted key comes from.

    Args:
        cfg (Config): The config.
        options (Dict[str, Any]): Overrides by dotted key.
        key (str): A dotted key.
        value (Any): Its value, where that tells more than the key, as that of
            ``type`` does. Defaults to None.

    Returns:
        str: '--cfg-options', or a file's path.
    """
    if any(key == o or key.startswith(f'{o}.') or o.startswith(f'{key}.')
           for o in options):
        return '--cfg-options'
    pattern = rf'\b{re.escape(key.split(".")[-1])}\b\'?\s*[=:]'
    if isinstance(value, str):
        pattern += rf'.*{re.escape(value)}'
    found = file = str(cfg.filename)
    # The text is that of all files, bases first, each after its path.
    for line in (cfg.text or '').splitlines():
        if line.endswith('.py') and Path(line).is_file():
            file = line
        elif re.search(pattern, line):
            found = file
    return found
