"""What a checkpoint says about its encoder, beyond the shapes of its tensors.

Width, depth and patch size follow from the tensors; the number of attention
heads and the normalisation of images do not, and are noted as plain values
when a checkpoint is saved.
"""
import ast
from typing import Any, Dict, Mapping, Optional

import torch
from torch import nn

from ..image_config import is_plain

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
    preprocessor = getattr(model, 'data_preprocessor', None)
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
    """Read them back from a checkpoint's meta.

    Args:
        meta (Mapping[str, Any]): Of a ``.pth`` file, or of a safetensors file,
            which holds strings.

    Returns:
        Dict[str, Any]: Empty where nothing was noted.
    """
    facts = meta.get(KEY)
    if isinstance(facts, str):
        try:
            facts = ast.literal_eval(facts)
        except (ValueError, SyntaxError):
            return {}
    return dict(facts) if isinstance(facts, Mapping) else {}
