"""Configs as plain data, read and checked without executing code.

mmengine executes a config as Python, and its registries import and call any
dotted name. This is acceptable for configs that a user passes on the command
line. A config in a checkpoint or a work folder is not trusted:
:func:`parse_config` reads its literals, and :func:`check_types` checks its
types against a list. Both readers return a config as :func:`format_config`
wrote it.
"""
import ast
import keyword
import math
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

# Longer than any real config. Limits the parser's time and memory.
MAX_CHARACTERS = 10_000_000
# Keys whose value mmengine and mmcv look up in a registry.
_TYPE_KEYS = ('type', 'conv_type')
_NOT_FINITE = ('inf', '-inf', 'nan')
_WIDTH = 79
# Allowed package prefixes of model classes.
_LIBRARIES = ('cmae_mm', 'mmcv', 'mmengine', 'mmpretrain', 'torch')
# Strings of a model, such as 'b', 'avg_featmap' or 'eva02-l'. No dots, colons
# or slashes: no module, address or path.
_WORD = re.compile(r'[\w \-+]{0,100}')

# Classes of a model that may be built from a checkpoint's config.
MODEL_TYPES = frozenset({
    'CMAE', 'CMAEViT', 'CMAEConvViT', 'CMAENeck', 'CMAEHead',
    'CMAEContrastiveHead', 'CMAEReconstructionHead',
    'TwoViewDataPreprocessor', 'ChannelDataPreprocessor',
    # mmpretrain's
    'CosineSimilarityLoss', 'LinearNeck', 'MAEPretrainDecoder',
    'MAEPretrainHead', 'NonLinearNeck', 'PixelReconstructionLoss',
    'SelfSupDataPreprocessor',
    # layers of mmcv and mmpretrain
    'BN', 'BN1d', 'BN2d', 'Conv2d', 'DropPath', 'Dropout', 'GELU', 'GN',
    'IN1d', 'LN', 'LN2d', 'LeakyReLU', 'ReLU', 'SiLU', 'SyncBN',
})


class PlainConfigError(ValueError):
    """A config that is not plain data."""


def parse_config(text: str) -> dict[str, Any]:
    """Parse a config file without executing it.

    Args:
        text (str): Assignments of literals and ``dict(...)``, as mmengine's
            ``Config.dump`` and :func:`format_config` write them. A dotted
            name, which stands for a class, is read as a string.

    Returns:
        dict[str, Any]: Values by name.

    Raises:
        PlainConfigError: If it contains anything else, or is too long or too
            deeply nested.
    """
    if len(text) > MAX_CHARACTERS:
        raise PlainConfigError(
            f'its config has {len(text):,} characters, more than the limit of '
            f'{MAX_CHARACTERS:,}')
    try:
        return _read_assignments(ast.parse(text))
    except PlainConfigError:
        raise
    except (SyntaxError, ValueError, TypeError) as error:
        raise PlainConfigError(f'its config cannot be read: {error}'
                               ) from error
    except (RecursionError, MemoryError) as error:
        raise PlainConfigError('its config is nested too deeply') from error


def _read_assignments(tree: ast.Module) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.Assign):
            raise _unexpected(statement)
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                raise _unexpected(statement)
            value = _Literals().visit(statement.value)
            try:
                values[target.id] = ast.literal_eval(value)
            except ValueError as error:
                raise _unexpected(statement.value) from error
    return values


class _Literals(ast.NodeTransformer):
    """Replaces ``dict(...)``, ``float('inf')`` and classes by literals."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name, keys = getattr(node.func, 'id', ''), node.keywords
        if name == 'dict' and not node.args and all(k.arg for k in keys):
            return ast.Dict([ast.Constant(k.arg) for k in keys],
                            [self.visit(k.value) for k in keys])
        if name == 'float' and len(node.args) == 1 and not keys:
            value = getattr(node.args[0], 'value', None)
            if value in _NOT_FINITE:
                return ast.Constant(float(value))
        raise _unexpected(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        name = ast.unparse(node)
        if not re.fullmatch(r'[\w.]+', name):
            raise _unexpected(node)
        return ast.Constant(name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in _NOT_FINITE:
            raise _unexpected(node)
        return ast.Constant(float(node.id))


def _unexpected(node: ast.AST) -> PlainConfigError:
    line = getattr(node, 'lineno', 0)
    return PlainConfigError(
        f'line {line} of its config is not a plain value '
        f'({type(node).__name__}); code in configs is not run')


def format_config(values: Mapping[str, Any]) -> str:
    """Format a config as Python text that parses to the same values.

    mmengine's own writer loses keys with quotes and numbers that are not
    finite. Its reader replaces ``{{...}}`` within values, so that braces are
    written as escapes here.

    Args:
        values (Mapping[str, Any]): Plain values by name, as returned by
            ``Config.to_dict``. Classes become their dotted names; numpy
            scalars and arrays become numbers. Top-level keys that are not
            identifiers are omitted.

    Returns:
        str: An assignment for each name; values are in ASCII.
    """
    return '\n'.join(
        f'{name} = {_format(values[name], len(name) + 3)}'
        for name in sorted(values) if _is_name(name)) + '\n'


def _is_name(key: Any) -> bool:
    return (isinstance(key, str) and key.isidentifier()
            and not keyword.iskeyword(key)
            and unicodedata.normalize('NFKC', key) == key)


def _format(value: Any, used: int, indent: int = 0) -> str:
    """Write a value, on one line if it fits after the used characters."""
    items: list[Any]
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        plain = all(_is_name(key) for key in value)
        begin, end = ('dict(', ')') if plain else ('{', '}')
        names = [f'{k}=' if plain else f'{_format(k, 0)}: ' for k, _ in items]
        items = [item for _, item in items]
    elif isinstance(value, (list, tuple, set)):
        begin, end = (('[', ']') if isinstance(value, list) else
                      ('(', ')') if isinstance(value, tuple) else ('{', '}'))
        items, names = list(value), [''] * len(value)
    else:
        return _format_scalar(value)
    parts = [f'{name}{_format(item, len(name), indent + 4)}'
             for name, item in zip(names, items)]
    comma = ',' if isinstance(value, tuple) and len(items) == 1 else ''
    line = f'{begin}{", ".join(parts)}{comma}{end}'
    if len(line) + used + indent <= _WIDTH and '\n' not in line or not parts:
        return line
    space = ' ' * (indent + 4)
    return begin + ''.join(
        f'\n{space}{part},' for part in parts) + f'\n{" " * indent}{end}'


def _format_scalar(value: Any) -> str:
    if isinstance(value, type):
        value = f'{value.__module__}.{value.__qualname__}'
    if hasattr(value, 'tolist'):  # numpy's and torch's
        return _format(value.tolist(), 0)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if type(value) in (type(None), bool, int, float, complex, bytes):
        return repr(value)
    return ascii(str(value)).replace('{{', '{\\x7b')


def check_types(node: Any,
                allowed: Collection[str] = MODEL_TYPES,
                where: str = 'model') -> Any:
    """Check a model's config before it is built.

    Each type must be in ``allowed``. No other value may be the name of a
    module, a file or an address. ``init_cfg`` is removed, since the weights
    come from the checkpoint.

    Args:
        node (Any): Plain values.
        allowed (Collection[str]): Names of registered classes. Defaults to
            :data:`MODEL_TYPES`.
        where (str): The node's dotted key, for messages. Defaults to 'model'.

    Returns:
        Any: A copy without ``init_cfg``, whose types are bare names of
        ``allowed``.

    Raises:
        PlainConfigError: If a type is not allowed, or a key or value is not a
            setting of a model.
    """
    if isinstance(node, dict):
        return {key: _check_entry(key, value, allowed, f'{where}.{key}')
                for key, value in node.items() if key != 'init_cfg'}
    if isinstance(node, (list, tuple)):
        return type(node)(check_types(value, allowed, f'{where}.{i}')
                          for i, value in enumerate(node))
    if node is None or isinstance(node, (bool, int, float)) or (
            isinstance(node, str) and _WORD.fullmatch(node)):
        return node
    raise PlainConfigError(
        f'{where}={str(node)[:100]!r} in its config is not a setting of a '
        'model')


def _check_entry(key: Any, value: Any, allowed: Collection[str],
                 where: str) -> Any:
    if not isinstance(key, str) or key.startswith('_') or (
            not key.isidentifier()):
        raise PlainConfigError(
            f'{where[:100]!r} in its config is not a setting of a model')
    if key not in _TYPE_KEYS:
        return check_types(value, allowed, where)
    package, _, name = str(value).rpartition('.')
    known = package == '' or package.split('.')[0] in _LIBRARIES
    if not isinstance(value, str) or not known or name not in allowed:
        raise PlainConfigError(
            f'{where}={str(value)[:100]!r} in its config is not one of the '
            'classes that are built from a checkpoint')
    return name
