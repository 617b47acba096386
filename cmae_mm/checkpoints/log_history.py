"""mmengine's log history as plain values, and back."""
from typing import Any, Dict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

STATE_KEYS = frozenset(
    ('max_length', '_log_history', '_count_history', 'statistics_methods',
     '_statistics_methods'))
# How a plain one is known.
_KIND = 'mmengine.HistoryBuffer'


def fill_log_history(buffer: HistoryBuffer, state: Dict[str, Any]) -> None:
    """Fill a new log history with what a file says of it.

    The statistics that the file names are left out: a buffer has its own.

    Args:
        buffer (HistoryBuffer): A new log history, filled in place.
        state (Dict[str, Any]): Its state in the file: ``_log_history`` and
            ``_count_history``, 1-d arrays of the same length, and
            ``max_length``.

    Raises:
        ValueError: If the state holds something else.
    """
    arrays = [state['_log_history'], state['_count_history']]
    for array in arrays:
        if type(array) is not np.ndarray or array.ndim != 1 or (
                array.dtype.kind not in 'fiub'):
            raise ValueError('a log history is no series of numbers')
    if len(arrays[0]) != len(arrays[1]) or type(
            state['max_length']) is not int:
        raise ValueError('a log history has no length')
    buffer._log_history, buffer._count_history = arrays
    buffer.max_length = state['max_length']


def to_plain(value: Any) -> Any:
    """Make what a message hub holds readable without its classes.

    Args:
        value (Any): ``message_hub`` or ``meta`` of a checkpoint.

    Returns:
        Any: The same, with log histories as dicts of tensors, and numpy's
        scalars and arrays as numbers and tensors.
    """
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return dict(
            kind=_KIND,
            log_history=torch.from_numpy(np.array(log)),
            count_history=torch.from_numpy(np.array(count)),
            max_length=value.max_length)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiub':
        return torch.from_numpy(np.array(value))
    if type(value) in (list, tuple):
        return type(value)(to_plain(v) for v in value)
    if isinstance(value, dict):
        kind = type(value) if hasattr(value, 'move_to_end') else dict
        return kind((k, to_plain(v)) for k, v in value.items())
    return value


def from_plain(hub: Dict[str, Any]) -> Dict[str, Any]:
    """Rebuild the log histories of a checkpoint's ``message_hub``.

    Args:
        hub (Dict[str, Any]): The message hub as :func:`to_plain` or mmengine
            wrote it.

    Returns:
        Dict[str, Any]: The message hub in the form that mmengine's
        ``MessageHub`` loads.
    """
    scalars = {
        name: _rebuild(value) if isinstance(value, dict)
        and value.get('kind') == _KIND else value
        for name, value in hub.get('log_scalars', {}).items()
    }
    return {**hub, 'log_scalars': scalars}


def _rebuild(plain: Dict[str, Any]) -> HistoryBuffer:
    buffer = HistoryBuffer()
    fill_log_history(
        buffer,
        dict(
            _log_history=plain['log_history'].cpu().numpy(),
            _count_history=plain['count_history'].cpu().numpy(),
            max_length=plain['max_length']))
    return buffer
