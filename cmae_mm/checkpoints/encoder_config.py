"""Settings of an encoder that its tensors do not contain.

Width, depth and patch size follow from the tensors. The number of attention
heads, the normalisation of images and their decoding do not, and are saved in
the metadata of a checkpoint as plain values.
"""
import ast
from contextlib import suppress
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import torch
from torch import nn

from ..datasets.decode import make_settings
from ..image_config import is_plain
from .errors import CheckpointError
from .model_folders import NORM_EPS, norm_eps, read_settings

# The key of a checkpoint's meta.
KEY = 'encoder_facts'


def encoder_facts(model: nn.Module,
                  images: Optional[Mapping[str, Any]] = None
                  ) -> Dict[str, Any]:
    """Collect the settings of a model's encoder, for a checkpoint.

    Args:
        model (nn.Module): A model whose ``backbone`` is a vision transformer.
        images (Mapping[str, Any], optional): Settings of ``LoadCanvas`` for
            decoding images. Defaults to None, those of the data preprocessor.

    Returns:
        Dict[str, Any]: Empty for other models; otherwise one entry,
        :data:`KEY`, a dict of

        - ``num_heads``,
        - ``mean`` and ``std`` of each channel, in the units of the images,
          colours as RGB, where the model normalises images,
        - ``images``, the settings for decoding, unless they are 8-bit colours,
        - ``value_range``, black and white of each channel, unless it is from
          0 to 255,
        - ``norm_eps``, epsilon of the layer norms, unless it is 1e-6,
        - ``target_with_cls_token``, where there is a target.
    """
    settings = getattr(getattr(model, 'backbone', None), 'arch_settings', None)
    if not isinstance(settings, Mapping) or 'num_heads' not in settings:
        return {}
    facts: Dict[str, Any] = dict(num_heads=int(settings['num_heads']))
    if norm_eps(model.backbone) != NORM_EPS:
        facts['norm_eps'] = norm_eps(model.backbone)
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
    """Read the settings of an encoder from a checkpoint's metadata.

    Args:
        meta (Mapping[str, Any]): Of a ``.pth`` file, or of a safetensors file,
            which holds strings; with the settings of a folder.

    Returns:
        Dict[str, Any]: See :func:`encoder_facts`, and ``crop_pct``, the side
        of the centre crop relative to the resized short side of the image;
        empty if there are none.

    Raises:
        CheckpointError: If a value is not allowed.
    """
    noted = meta.get(KEY)
    if noted is None:
        noted = read_settings(meta)
    if isinstance(noted, str):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError,
                      RecursionError):
            noted = ast.literal_eval(noted)
    if not isinstance(noted, Mapping):
        raise _wrong(KEY, noted, 'a dict of plain values')
    facts = {k: noted[k] for k in _ALLOWED if noted.get(k) is not None}
    for name, value in facts.items():
        is_allowed, words = _ALLOWED[name]
        if not is_allowed(value):
            raise _wrong(name, value, words)
    ends = [facts[k] for k in ('mean', 'std') if k in facts]
    ends += facts.get('value_range', [])
    if len({len(end) for end in ends}) > 1 or len(ends) in (1, 2) and not (
            'mean' in facts and 'std' in facts):
        raise _wrong(KEY, facts, 'mean and std of as many channels, and of '
                     'value_range where there is one,')
    if 'images' in facts:
        try:
            settings = make_settings(**facts['images'])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f'its record says images={_short(facts["images"])}, but such '
                f'cannot be decoded: {error}') from None
        facts['images'] = dict(facts['images'], channels=settings.channels)
    return facts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:80]}...'


def _wrong(name: str, value: Any, words: str) -> CheckpointError:
    return CheckpointError(f'its record says {name}={_short(value)}, but '
                           f'{words} is needed')


def _is_list(value: Any) -> bool:
    """Whether a value is a list of finite numbers in float32's range."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool)
        and abs(v) <= torch.finfo(torch.float32).max for v in value)


# A check of each setting, and its words.
_ALLOWED: Dict[str, Tuple[Callable[[Any], bool], str]] = dict(
    num_heads=(lambda v: type(v) is int and v > 0, 'a whole number from 1'),
    norm_eps=(lambda v: isinstance(v, float) and 0 <= v < 1,
              'a number from 0 to 1'),
    crop_pct=(lambda v: isinstance(v, (int, float)) and 0.1 <= v <= 1,
              'a ratio from 0.1 to 1'),
    mean=(_is_list, 'a finite number for each channel'),
    std=(lambda v: _is_list(v) and min(v) >= torch.finfo(torch.float32).tiny,
         'a finite number above 0 for each channel'),
    value_range=(
        lambda v: isinstance(v, (list, tuple)) and len(v) == 2
        and all(map(_is_list, v)) and all(a < b for a, b in zip(*v)),
        'a number for black and a greater one for white for each channel'),
    images=(lambda v: isinstance(v, Mapping), 'a dict of settings'),
    target_with_cls_token=(lambda v: type(v) is bool, 'True or False'))
