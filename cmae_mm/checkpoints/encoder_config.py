"""Settings of an encoder that its tensors do not contain.

Width, depth and patch size are derived from the tensors. The number of
attention heads and the settings to decode and normalise images are saved in
the metadata of a checkpoint as plain values.
"""
import ast
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..datasets.decode import is_plain, make_settings
from . import CheckpointError

# Key in the metadata of a checkpoint.
KEY = 'encoder_facts'
# Epsilon of the layer norms of mmpretrain's, timm's and MAE's encoders.
NORM_EPS = 1e-6


def norm_eps(encoder: nn.Module) -> float:
    """Return the epsilon of an encoder's layer norms."""
    return float(getattr(encoder.layers[0].ln1, 'eps', NORM_EPS))


def encoder_record(model: nn.Module,
                   images: Mapping[str, Any] | None = None,
                   img_size: Any = None) -> dict[str, Any]:
    """Collect the settings of a model's encoder, for a checkpoint.

    Args:
        model (nn.Module): A model whose ``backbone`` is a vision transformer.
        images (Mapping[str, Any], optional): Settings of ``LoadCanvas`` for
            decoding images. Defaults to None, those of the data preprocessor.
        img_size (int | Sequence[int], optional): Size of the images in pixels.
            Defaults to the encoder's.

    Returns:
        dict[str, Any]: Empty for other models; otherwise one entry,
        :data:`KEY`, a dict of

        - ``num_heads``,
        - ``mean`` and ``std`` of each channel, in the units of the images,
          colours as RGB, where the model normalises images,
        - ``images``, the settings for decoding, unless they are 8-bit colours,
        - ``value_range``, black and white of each channel, unless it is from
          0 to 255,
        - ``norm_eps``, epsilon of the layer norms, unless it is 1e-6,
        - ``target_with_cls_token``, where there is a target,
        - ``num_class_tokens``, unless it is 1,
        - ``img_size``, height and width of images in pixels.
    """
    settings = getattr(getattr(model, 'backbone', None), 'arch_settings', None)
    if not isinstance(settings, Mapping) or 'num_heads' not in settings:
        return {}
    record: dict[str, Any] = dict(num_heads=int(settings['num_heads']))
    if norm_eps(model.backbone) != NORM_EPS:
        record['norm_eps'] = norm_eps(model.backbone)
    classes = 1 if getattr(model.backbone, 'cls_token', None) is None else (
        getattr(model.backbone, 'num_class_tokens', 1))
    if classes != 1:
        record['num_class_tokens'] = classes
    record |= _size(img_size or getattr(model.backbone, 'img_size', None))
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if isinstance(value, torch.Tensor):
            record[name] = [float(v) for v in value.flatten()]
    decoded = dict(images or {})
    for name in ('channels', 'dtype'):
        if hasattr(preprocessor, name):
            decoded.setdefault(name, getattr(preprocessor, name))
    decoded = {k: v for k, v in decoded.items() if v is not None}
    if decoded and not is_plain(decoded):
        record['images'] = decoded
    if not getattr(preprocessor, 'is_byte_range', True):
        low, high = preprocessor.low, preprocessor.low + preprocessor.width
        record['value_range'] = [[float(v) for v in end.flatten()]
                                 for end in (low, high)]
    target = getattr(model, 'target', None)
    if target is not None:
        record['target_with_cls_token'] = bool(target.with_cls_token)
    return {KEY: record}


def read_encoder_record(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings of an encoder from a checkpoint's metadata.

    Args:
        meta (Mapping[str, Any]): Metadata of a ``.pth`` file, or of a
            safetensors file, whose values are strings; with the settings of a
            folder, used if the record lacks them.

    Returns:
        dict[str, Any]: See :func:`encoder_record`, ``crop_pct``, the side of
        the centre crop relative to the resized short side of the image, and
        ``num_layers``; empty without settings.

    Raises:
        CheckpointError: If a value is not allowed.
    """
    recorded = meta.get(KEY) or {}
    if isinstance(recorded, str):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError,
                      RecursionError):
            recorded = ast.literal_eval(recorded)
    if not isinstance(recorded, Mapping):
        raise _wrong(KEY, recorded, 'a dict of plain values')
    recorded = {**_read_folder(meta), **recorded}
    record = {k: recorded[k] for k in _ALLOWED if recorded.get(k) is not None}
    for name, value in record.items():
        is_allowed, words = _ALLOWED[name]
        if not is_allowed(value):
            raise _wrong(name, value, words)
    ends = [record[k] for k in ('mean', 'std') if k in record]
    ends += record.get('value_range', [])
    if len({len(end) for end in ends}) > 1 or len(ends) in (1, 2) and not (
            'mean' in record and 'std' in record):
        raise _wrong(KEY, record, 'mean and std of as many channels, and of '
                     'value_range where there is one,')
    if 'images' in record:
        try:
            settings = make_settings(**record['images'])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f'its record has images={_short(record["images"])}, but these '
                f'settings cannot be used: {error}') from None
        record['images'] = dict(record['images'], channels=settings.channels)
    return record


def _read_folder(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Read the JSON files of a folder of transformers or timm.

    Args:
        meta (Mapping[str, Any]): Their contents by the files' names.

    Returns:
        dict[str, Any]: See :func:`read_encoder_record`.

    Raises:
        CheckpointError: If the settings of images cannot be read.
    """
    config = meta.get('config.json', {})
    images = meta.get('preprocessor_config.json', {})
    record: dict[str, Any] = dict(num_heads=config.get('num_attention_heads'),
                                  num_layers=config.get('num_hidden_layers'),
                                  norm_eps=config.get('layer_norm_eps'),
                                  **_size(config.get('image_size')))
    activation = config.get('hidden_act', 'gelu')
    try:
        if 'pretrained_cfg' in config:
            images, given = config['pretrained_cfg'], config.get(
                'model_args', {})
            activation = given.get('act_layer', 'gelu')
            record['num_heads'] = given.get('num_heads')
            record.update(_size(given.get('img_size') or images.get(
                'input_size', [])[1:]))
            record['crop_pct'] = images.get('crop_pct')
            if 'mean' in images:
                record.update(_scale(images['mean'], images['std']))
        elif 'image_mean' in images:
            record.update(_read_processor(images))
    except (AttributeError, KeyError, TypeError, ValueError,
            ZeroDivisionError) as error:
        raise CheckpointError(
            f'its image settings cannot be read: {error!r}') from None
    if activation not in ('gelu', None):
        raise CheckpointError(
            f'its config.json says that the activation is {activation!r}, but '
            'only gelu is supported')
    return record


def _size(size: Any) -> dict[str, Any]:
    """Return ``img_size`` as height and width; nothing if it is none."""
    pair = [size, size] if isinstance(size, int) else size
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
    return dict(img_size=list(pair)) if is_pair else {}


def _read_processor(images: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings of an image processor of transformers."""
    mean, std = images['image_mean'], images['image_std']
    if not images.get('do_normalize', True):
        mean, std = [0.] * len(mean), [1.] * len(std)
    factor = images.get('rescale_factor', 1 / 255)
    record = _scale(mean, std, factor if images.get('do_rescale', True) else 1)
    sides = (images.get(name) or {} for name in ('size', 'crop_size'))
    short, crop = (s if isinstance(s, int) else s.get(
        'shortest_edge', s.get('height', 0)) for s in sides)
    if images.get('do_resize', True) and short:
        crops = images.get('do_center_crop') and crop
        record['crop_pct'] = crop / short if crops else 1.
    return record


def _scale(mean: Sequence[float], std: Sequence[float],
           factor: float = 1 / 255) -> dict[str, Any]:
    """Convert mean and standard deviation to the units of images."""
    return dict(mean=[v / factor for v in mean],
                std=[v / factor for v in std])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:80]}...'


def _wrong(name: str, value: Any, words: str) -> CheckpointError:
    return CheckpointError(f'its record has {name}={_short(value)}, but '
                           f'{words} is needed')


def _is_list(value: Any) -> bool:
    """Whether a value is a list of finite numbers in float32's range."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool)
        and abs(v) <= torch.finfo(torch.float32).max for v in value)


# Check and description of each setting.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = dict(
    num_heads=(lambda v: type(v) is int and v > 0, 'a whole number from 1'),
    num_layers=(lambda v: type(v) is int and v > 0, 'a whole number from 1'),
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
    num_class_tokens=(lambda v: type(v) is int and 0 <= v <= 16,
                      'a whole number from 0 to 16'),
    img_size=(lambda v: isinstance(v, (list, tuple)) and len(v) == 2
              and all(type(side) is int and side > 0 for side in v),
              'height and width in pixels'),
    target_with_cls_token=(lambda v: type(v) is bool, 'True or False'))
