"""What a checkpoint says about its encoder, beyond the shapes of its tensors.

Width, depth and patch size follow from the tensors. The number of attention
heads and the normalisation of images do not, and are noted as plain values
when a checkpoint is saved.
"""
import ast
from contextlib import suppress
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np
import torch
from torch import nn

from ..datasets.decode import make_settings
from ..image_config import is_plain
from .errors import CheckpointError

# The key of a checkpoint's meta.
KEY = 'encoder_facts'


def encoder_facts(model: nn.Module,
                  images: Optional[Mapping[str, Any]] = None
                  ) -> Dict[str, Any]:
    """Give what a checkpoint of a model notes about its encoder.

    Args:
        model (nn.Module): With ``backbone``, a vision transformer.
        images (Mapping[str, Any], optional): How its images are decoded,
            where that is known: the settings of ``LoadCanvas``. Defaults to
            None, what the data preprocessor says of them.

    Returns:
        Dict[str, Any]: Empty for other models; otherwise one entry,
        :data:`KEY`, with ``num_heads``; ``mean`` and ``std`` of each channel,
        in the units of the images, colours in the order RGB, where the model
        normalises images; ``images``, how they are decoded, unless they are
        colours of 8 bits; ``value_range``, black and white of each channel,
        where values are not from 0 to 255; and ``target_with_cls_token`` where
        there is a target.
    """
    settings = getattr(getattr(model, 'backbone', None), 'arch_settings', None)
    if not isinstance(settings, Mapping) or 'num_heads' not in settings:
        return {}
    facts: Dict[str, Any] = dict(num_heads=int(settings['num_heads']))
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if isinstance(value, torch.Tensor):
            facts[name] = [float(v) for v in value.flatten()]
    decoded = dict(images or {})
    for name in ('channels', 'dtype'):
        if hasattr(preprocessor, name):
            decoded.setdefault(name, getattr(preprocessor, name))
    decoded = {k: v for k, v in decoded.items() if v is not None}
    if decoded and not is_plain(decoded):
        facts['images'] = decoded
    if not getattr(preprocessor, 'is_byte_range', True):
        low, high = preprocessor.low, preprocessor.low + preprocessor.width
        facts['value_range'] = [[float(v) for v in end.flatten()]
                                for end in (low, high)]
    target = getattr(model, 'target', None)
    if target is not None:
        facts['target_with_cls_token'] = bool(target.with_cls_token)
    return {KEY: facts}


def read_encoder_facts(meta: Mapping[str, Any]) -> Dict[str, Any]:
    """Read what a checkpoint notes about its encoder.

    Args:
        meta (Mapping[str, Any]): Of a ``.pth`` file, or of a safetensors file,
            which holds strings.

    Returns:
        Dict[str, Any]: See :func:`encoder_facts`; empty where nothing was
        noted.

    Raises:
        CheckpointError: If a value is none of what is allowed.
    """
    noted = meta.get(KEY)
    if noted is None:
        return {}
    if isinstance(noted, str):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError,
                      RecursionError):
            noted = ast.literal_eval(noted)
    if not isinstance(noted, Mapping):
        raise _wrong(KEY, noted, 'a dict of plain values is needed')
    facts = {name: check(name, noted[name]) for name, check in _CHECKS.items()
             if noted.get(name) is not None}
    lengths = [len(facts[k]) for k in ('mean', 'std') if k in facts]
    lengths += [len(end) for end in facts.get('value_range', ())]
    if len(set(lengths)) > 1 or ('mean' in facts) != ('std' in facts):
        raise CheckpointError(
            'its record needs mean and std, and value_range where there is '
            'one, of as many channels each, but has '
            f'{ {k: facts[k] for k in facts if k in _LISTS} }')
    return facts


def _wrong(name: str, value: Any, allowed: str) -> CheckpointError:
    text = repr(value)
    text = text if len(text) <= 80 else f'{text[:80]}...'
    return CheckpointError(f'its record says {name}={text}, but {allowed}')


def _heads(name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or (
            value < 1):
        raise _wrong(name, value, 'a whole number from 1 is needed')
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _wrong(name, value, 'True or False is needed')
    return bool(value)


def _numbers(name: str, value: Any) -> List[float]:
    """Check finite numbers, one a channel, in float32's range."""
    limit = float(np.finfo(np.float32).max)
    if not isinstance(value, (list, tuple)) or not value or not all(
            isinstance(v, (int, float)) and not isinstance(v, bool)
            and abs(v) <= limit for v in value):
        raise _wrong(name, value, 'a finite number for each channel is needed')
    return [float(v) for v in value]


def _deviations(name: str, value: Any) -> List[float]:
    found = _numbers(name, value)
    if min(found) < np.finfo(np.float32).tiny:
        raise _wrong(name, value, 'deviations above 0 are needed')
    return found


def _value_range(name: str, value: Any) -> List[List[float]]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _wrong(name, value, 'two lists are needed: black and white')
    low, high = (_numbers(name, end) for end in value)
    if not all(a < b for a, b in zip(low, high)):
        raise _wrong(name, value, 'black must be below white')
    return [low, high]


def _images(name: str, value: Any) -> Dict[str, Any]:
    try:
        make_settings(**value)
    except (TypeError, ValueError) as error:
        raise _wrong(name, value, f'that cannot be decoded: {error}'
                     ) from None
    return dict(value)


_LISTS = ('mean', 'std', 'value_range')
_CHECKS: Dict[str, Callable[[str, Any], Any]] = dict(
    num_heads=_heads,
    mean=_numbers,
    std=_deviations,
    images=_images,
    value_range=_value_range,
    target_with_cls_token=_flag)
