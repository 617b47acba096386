"""Loading a config, and overrides from the command line."""
import ast
import difflib
import inspect
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .dependencies import find_config, require_dense, suggest

if TYPE_CHECKING:
    from mmengine.config import Config

# Overrides of a config: values by dotted key, or KEY=VALUE each.
Overrides = Mapping[str, Any] | Sequence[str]
# Top-level keys read by the libraries and this project, in addition to the
# arguments of the runner.
_OTHER_KEYS = {
    'activation_checkpointing', 'compile', 'custom_imports',
    'efficient_conv_bn_eval', 'evaluation', 'find_unused_parameters',
    'image_stats', 'load_partial', 'log_file', 'model_wrapper_cfg',
    'resume_from', 'runner_type', 'strategy', 'sync_bn', 'tta_model',
    'tta_pipeline'
}
# Common variables in configs that no code reads.
_VARIABLES = {
    'data_root', 'dataset_type', 'test_pipeline', 'train_pipeline',
    'val_pipeline'
}
# Settings whose misspelt keys mmengine ignores or rejects with a traceback.
_NESTED = {
    'auto_scale_lr': 'base_batch_size enable',
    'env_cfg': 'cudnn_benchmark dist_cfg mp_cfg resource_limit',
    'log_processor': 'by_epoch custom_cfg log_with_hierarchy mean_pattern '
    'num_digits type window_size',
    'randomness': 'deterministic diff_rank_seed seed',
    'optim_wrapper.paramwise_cfg':
    'base_total_layers bias_decay_mult bias_lr_mult bypass_duplicate '
    'custom_keys dcn_offset_lr_mult decay_mult decay_rate decay_type '
    'dwconv_decay_mult flat_decay_mult layer_decay_rate lr_mult '
    'norm_decay_mult num_layers',
    'optim_wrapper.clip_grad':
    'clip_value error_if_nonfinite foreach max_norm norm_type type',
    'default_hooks':
    'checkpoint logger param_scheduler preemption progress runtime_info '
    'sampler_seed skipped_step step_seed timer visualization',
}
# Minimum similarity of a misspelt name to the correct one, see difflib.
_SIMILAR = 0.85

# Numeric settings: a pattern of the key, whether it is an integer, its lower
# bound, and whether the bound itself is allowed.
_NUMBERS: list[tuple[str, bool, float, bool]] = [
    (r'train_cfg\.(max_epochs|max_iters|val_interval)', True, 1, True),
    (r'(train|val|test)_dataloader\.batch_size', True, 1, True),
    (r'(train|val|test)_dataloader\.num_workers', True, 0, True),
    (r'default_hooks\.logger\.interval', True, 1, True),
    (r'default_hooks\.checkpoint\.(interval|max_keep_ckpts)', True, -1, True),
    (r'randomness\.seed', True, 0, True),
    (r'model\.backbone\.mask_ratio', False, 0, False),
    (r'optim_wrapper\.accumulative_counts', True, 1, True),
    (r'optim_wrapper\.clip_grad\.(max_norm|clip_value)', False, 0, False),
    (r'optim_wrapper\.optimizer\.lr', False, 0, False),
    (r'optim_wrapper\.optimizer\.(weight_decay|momentum)', False, 0, True),
    (r'auto_scale_lr\.base_batch_size', True, 1, True),
    (r'env_cfg\.dist_cfg\.timeout', False, 0, False),
]
# Parts that must be dicts where they are set.
_DICTS = ('model', 'model.backbone', 'optim_wrapper', 'train_dataloader',
          'train_cfg', 'default_hooks')
# Parts that a model needs, if its config has them.
_NEEDED = {f'model.{part}' for part in (
    'backbone', 'head', 'decode_head', 'rpn_head', 'roi_head')}


class ArgumentError(ValueError):
    """An invalid argument. The message names the allowed values."""


class ConfigError(ValueError):
    """An invalid config; the message has the setting to change."""


def check_pairs(pairs: Sequence[str]) -> None:
    """Check the form of ``--cfg-options``; needs no library.

    Args:
        pairs (Sequence[str]): ``KEY=VALUE`` each.

    Raises:
        ConfigError: If a pair is malformed, a dict, or has unmatched brackets.
    """
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not all(key.split('.')):
            raise ConfigError('--cfg-options takes KEY=VALUE, with dots '
                              f'between nested keys, but got {pair!r}')
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


def parse_options(pairs: Overrides) -> dict[str, Any]:
    """Parse ``--cfg-options``.

    Values are parsed as in mmengine: numbers, True, False, None, lists
    (``1,2`` or ``[1,2]``), tuples and strings. Unlike mmengine, spaces within
    strings are kept, and a quoted value is always a string.

    Args:
        pairs (Mapping[str, Any] | Sequence[str]): Values by dotted key, or
            ``KEY=VALUE`` each.

    Returns:
        dict[str, Any]: Values by dotted key.

    Raises:
        ConfigError: See :func:`check_pairs`.
    """
    if isinstance(pairs, Mapping):
        return dict(pairs)
    check_pairs(pairs)
    found: dict[str, Any] = {}
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


def load_config(name: str, pairs: Overrides = ()) -> 'Config':
    """Read a config, apply overrides, and check its keys.

    Args:
        name (str): A file, or a packaged config's name.
        pairs (Mapping[str, Any] | Sequence[str]): Overrides, see
            :func:`parse_options`. Defaults to none.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is no such config.
        ConfigError: If it cannot be read, or a setting is invalid.
        MissingLibrary: If its base config belongs to a library that is not
            installed.
    """
    from mmengine.config import Config
    options = parse_options(pairs)
    path = find_config(name)
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except ModuleNotFoundError as error:
        # `_base_ = 'mmdet::...'` is loaded before custom_imports.
        for library, extra in (('mmdet', 'det'), ('mmseg', 'seg')):
            if library in str(error):
                require_dense(library, extra)
        raise ConfigError(f'{path} cannot be read: {error}') from error
    except RecursionError:
        raise ConfigError(
            f'{path} cannot be read: it inherits from itself') from None
    except (Exception, SystemExit) as error:  # the file is executed
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f'{path} cannot be read: {reason}') from error
    apply_options(cfg, options)
    _import_modules(cfg)
    return cfg


def _import_modules(cfg: 'Config') -> None:
    """Import the modules of ``custom_imports``, also of an override."""
    from mmengine.utils import import_modules_from_strings
    try:
        import_modules_from_strings(
            **(cfg.get('custom_imports') or dict(imports=None)))
    except (ImportError, TypeError) as error:
        raise ConfigError(
            f'custom_imports of {cfg.filename}: {error.__context__ or error}; '
            'PYTHONPATH must contain the folder of your own modules'
        ) from error


def apply_options(cfg: 'Config', options: dict[str, Any]) -> None:
    """Apply overrides to a config, in place, and check its keys.

    If ``image_stats`` is set, the settings from that file are applied last.

    Args:
        cfg (Config): The config.
        options (dict[str, Any]): Values by dotted key.

    Raises:
        ConfigError: If an override does not fit into the config, or a setting
            is invalid.
        ImageStatsError: If ``image_stats`` cannot be used.
        ImageStatsConflict: If a setting contradicts it.
    """
    for key, value in options.items():
        former = dict(walk(cfg)).get(key)
        part = former[0] if former and isinstance(former, list) else former
        if isinstance(former, bool) and isinstance(value, str):
            raise ConfigError(f'{key} must be True or False, but got '
                              f'{value!r}')
        if isinstance(part, dict) and (type(value) in (int, float) or (
                value is None and key in _NEEDED)):
            raise ConfigError(
                f'--cfg-options {key}={value} would replace a '
                f'{type(former).__name__.replace("Config", "").lower()}; '
                f'override its values: {key}.KEY=VALUE')
        try:
            cfg.merge_from_dict({key: value})
        except (TypeError, KeyError, ValueError, AttributeError,
                IndexError) as error:
            raise ConfigError(
                f'--cfg-options {key} does not fit into {cfg.filename}: '
                f'{" ".join(map(str, error.args))}') from error
    check_keys(cfg, options)
    check_values(cfg)
    if cfg.get('image_stats') is not None:
        from .image_config import apply_image_stats
        apply_image_stats(cfg, list(options))


def known_keys() -> list[str]:
    """List the top-level keys that the runner and the libraries read."""
    from mmengine.runner import Runner
    runner = set(inspect.signature(Runner.__init__).parameters) - {'self'}
    return sorted(runner | _OTHER_KEYS)


def check_keys(cfg: 'Config', options: Mapping[str, Any]) -> None:
    """Check for misspelt keys.

    An unknown key may be a variable of the file or belong to a user's own
    hook. It is an error only if it is similar to a known key. An override of
    an unknown key causes a warning.

    Args:
        cfg (Config): The config.
        options (Mapping[str, Any]): Overrides by dotted key.

    Raises:
        ConfigError: If a key is misspelt.
    """
    read = known_keys()
    _refuse_misspelt(set(cfg) - _VARIABLES, read)
    for prefix, names in _NESTED.items():
        node = cfg
        for part in prefix.split('.'):
            node = node.get(part) if hasattr(node, 'get') else None
        if isinstance(node, dict):
            _refuse_misspelt(node, names.split(), f'{prefix}.',
                             longer=prefix == 'default_hooks')
    if 'launcher' in options:
        raise ConfigError('launcher cannot be set in --cfg-options; use '
                          '--launcher')
    for option in options:
        key = option.split('.')[0]
        if key not in read:
            print(f'warning: --cfg-options {option}: {key!r} is not a setting '
                  'of the runner; variables of the file are used before '
                  f'overrides apply{suggest(key, read)}', file=sys.stderr)


def _refuse_misspelt(keys: Iterable[str], known: Sequence[str],
                     prefix: str = '', longer: bool = True) -> None:
    """Raise an error for a key that is similar to a known one.

    With ``longer``, a key that contains a known one, or the reverse, is not
    misspelt: train_pipeline1, models, custom_hook are variables in many
    configs.
    """
    for key in sorted(set(keys) - set(known)):
        near = [k for k in known if sorted(k) == sorted(key)]
        near += difflib.get_close_matches(key, known, n=3, cutoff=_SIMILAR)
        if longer:
            near = [k for k in near if k not in key and key not in k]
        if near:
            raise ConfigError(f'there is no setting {prefix + key!r}; did you '
                              f'mean {near[0]!r}?')


def check_values(cfg: 'Config') -> None:
    """Check the settings that must be numbers, dicts or names.

    Raises:
        ConfigError: If one is not, or is out of range.
    """
    values = dict(walk(cfg))
    level = cfg.get('log_level', 'INFO')
    if isinstance(level, str) and isinstance(
            logging.getLevelName(level), str):
        raise ConfigError('log_level must be DEBUG, INFO, WARNING or ERROR, '
                          f'but got {level!r}')
    for key, allowed_kinds in (('resume', bool), ('compile', (bool, dict))):
        if not isinstance(cfg.get(key), (allowed_kinds, type(None))):
            raise ConfigError(
                f'{key} must be True or False, but got {cfg[key]!r}')
    for key in _DICTS:
        if not isinstance(values.get(key, {}), (dict, type(None))):
            raise ConfigError(f'{key} must be a dict, but got '
                              f'{values[key]!r}')
    for key, value in values.items():
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
            raise ConfigError(
                f'{key} must be {kind} {bound}, but got {value!r}')


def walk(node: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
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
