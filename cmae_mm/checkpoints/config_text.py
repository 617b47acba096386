"""Configs as text, read without running them.

mmengine writes a config as Python: assignments of literals and calls of
``dict``. Nothing else is accepted here, so that a config out of a checkpoint
can be looked at although the file may come from anywhere.
"""
import ast
from typing import Any, Dict

from .errors import CheckpointError


def parse_config_text(text: str) -> Dict[str, Any]:
    """Read what mmengine's ``Config.dump`` wrote, or ``Config.pretty_text``.

    Args:
        text (str): The Python text.

    Returns:
        Dict[str, Any]: Values by name.

    Raises:
        CheckpointError: If it holds more than literals and ``dict(...)``.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise CheckpointError(f'it is no config: {error}') from error
    values: Dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.Assign) or not all(
                isinstance(t, ast.Name) for t in statement.targets):
            raise _unexpected(statement)
        for target in statement.targets:
            values[getattr(target, 'id', '')] = _value(statement.value)
    return values


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        items = [_value(n) for n in node.elts]
        kinds = {ast.List: list, ast.Tuple: tuple, ast.Set: set}
        return kinds[type(node)](items)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k): _value(v)
                for k, v in zip(node.keys, node.values) if k is not None}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        if isinstance(value, (int, float)):
            return -value
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id == 'dict' and not node.args
            and all(k.arg for k in node.keywords)):
        return {str(k.arg): _value(k.value) for k in node.keywords}
    raise _unexpected(node)


def _unexpected(node: ast.AST) -> CheckpointError:
    line = getattr(node, 'lineno', 0)
    return CheckpointError(
        f'line {line} of its config is no plain value '
        f'({type(node).__name__}), and nothing in it is run')
