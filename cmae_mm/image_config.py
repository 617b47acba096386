"""Settings of a config from the image statistics of ``cmae stats``."""
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .datasets.decode import is_colour, is_plain
from .dependencies import name_of

if TYPE_CHECKING:
    from mmengine.config import Config

KEY = 'image_stats'
# Settings of decoding.
IMAGE_SETTINGS = ('channels', 'dtype', 'value_range', 'bands', 'fill',
                  'window', 'pages', 'max_pixels')
# ImageNet's, in the packaged configs: not set by the user.
_DEFAULTS: dict[str, list[float]] = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# Largest distance of black and white from the mean in standard deviations.
# Single pixels may have any value.
_WIDTH = 4
# Transforms of classifiers: for 8-bit colours only, for any image, and
# replacements.
_FOR_COLOURS = ('RandAugment', 'AutoAugment', 'RandomErasing', 'ColorJitter',
                'RandomGrayscale', 'Lighting', 'Albumentations')
_FOR_ALL = ('SeedDraws', 'LoadCanvas', 'LoadImage', 'LoadImageOrSkip',
            'ResizeImage', 'RandomFlip', 'CenterCrop', 'PackInputs')
_REPLACED = dict(LoadImageFromFile='LoadImage', ResizeEdge='ResizeImage')


class ImageStatsConflict(ValueError):
    """Image statistics that contradict a config."""


def apply_image_stats(cfg: 'Config', options: Sequence[str] = ()) -> None:
    """Apply the file of image statistics named by ``image_stats``, in place.

    Sets mean, standard deviation, type and range of the data preprocessor,
    ``in_channels`` of the backbone, and the settings of decoding.
    ``image_stats`` then becomes a dict with its source: it is not applied
    again, and the written config does not need the file.

    For images that are not 8-bit colours, a classifier's transforms for
    colours are removed, which is logged.

    Args:
        cfg (Config): A config for the images that the file describes.
        options (Sequence[str]): Dotted keys that the command line has set.
            Defaults to none.

    Raises:
        ImageStatsError: If the file cannot be used.
        ImageStatsConflict: If a setting contradicts it, or the config cannot
            take such images.
    """
    name = cfg.get(KEY)
    if not isinstance(name, (str, os.PathLike)):
        return
    name = os.path.expanduser(name)
    from mmengine.logging import print_log

    from .datasets.stats import read_image_stats
    stats = read_image_stats(name)
    filler = _Filler(cfg, name, stats, options)
    removed = filler.fill()
    cfg[KEY] = dict(
        file=os.path.abspath(name), images=stats['images'],
        **filler.settings)
    text = (f'image_stats: {filler.described}; mean, standard deviation and '
            f'range of {stats["images"]:,} images from {name}')
    if removed:
        text += (f'; {", ".join(removed)} removed from the pipeline, because '
                 'they support 8-bit colours only')
    print_log(text, logger='current')


def settings_of(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of decoding in statistics."""
    given = {k: v for k, v in (stats.get('settings') or {}).items()
             if k in IMAGE_SETTINGS and v is not None}
    return {**given, 'channels': stats['channels'], 'dtype': stats['dtype']}


def image_settings(cfg: 'Config') -> dict[str, Any]:
    """Return the settings of decoding of a config's training images.

    Args:
        cfg (Config): A config.

    Returns:
        dict[str, Any]: Arguments of ``LoadImage``, as far as they are set;
        empty for 8-bit colours.
    """
    for transform in _transforms(cfg.get('train_dataloader'), 'LoadCanvas',
                                 'LoadImage', 'LoadImageOrSkip'):
        found = {k: transform[k] for k in IMAGE_SETTINGS
                 if transform.get(k) is not None}
        return {} if is_plain(found) else found
    return {}


def value_range_of(stats: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return black and white of each channel.

    For three channels, which are colours, minimum and maximum. For others the
    quantiles of the statistics, at most four standard deviations from the
    mean.
    """
    if stats['channels'] == 3:
        return list(stats['min']), list(stats['max'])
    ends = []
    for least, greatest, mean, std, low, high in zip(
            stats['min'], stats['max'], stats['mean'], stats['std'],
            stats.get('low') or stats['min'],
            stats.get('high') or stats['max']):
        low = max(low, mean - _WIDTH * std)
        high = min(high, mean + _WIDTH * std)
        # A channel that is nearly constant has no quantiles.
        ends.append((low, high) if low < high else (least, greatest))
    lows, highs = zip(*ends)
    return list(lows), list(highs)


class _Filler:
    """Fills a config; see :func:`apply_image_stats`."""

    def __init__(self, cfg: 'Config', file: str, stats: dict[str, Any],
                 options: Sequence[str]) -> None:
        self.cfg, self.stats, self.options = cfg, stats, set(options)
        self.source = f'{KEY}={file}'
        self.settings = settings_of(stats)
        count = self.settings['channels']
        self.described = (f'{count} channel{"s" if count > 1 else ""} of '
                          f'{self.settings["dtype"]}')

    def fill(self) -> list[str]:
        """Fill in all settings; return the removed transforms."""
        model: Any = self.cfg.get('model') or {}
        kind = name_of(model.get('type'))
        owner, place = ((model, 'model.data_preprocessor')
                        if 'data_preprocessor' in model else
                        (self.cfg, 'data_preprocessor'))
        preprocessor = owner.get('data_preprocessor')
        limit = self.settings.get('max_pixels')
        plain = is_colour(self.settings)
        if kind not in ('CMAE', 'ImageClassifier') and not plain:
            self._refuse(f'a model of type {kind!r} supports 8-bit colours '
                         'only; detection and segmentation do not support '
                         'other images yet')
        if preprocessor is None:
            raise ImageStatsConflict(
                f'{KEY} sets values of the data_preprocessor, but this config '
                'has none')
        for key in ('mean', 'std'):
            self._set(preprocessor, place, key, list(self.stats[key]))
        if plain:  # other loaders have no limit
            for transform in _transforms(
                    self.cfg, 'LoadCanvas', 'LoadImage', 'LoadImageOrSkip'):
                if limit is not None:
                    self._set(transform, transform['type'], 'max_pixels',
                              limit)
            return []
        self._set(model.backbone, 'model.backbone', 'in_channels',
                  self.settings['channels'])
        self._set(preprocessor, place, 'dtype', self.settings['dtype'])
        if preprocessor.get('to_rgb'):
            self._set(preprocessor, place, 'to_rgb', False, default=True)
        used = name_of(preprocessor.get('type'))
        needed = (('ClsDataPreprocessor', 'ChannelClsDataPreprocessor')
                  if kind == 'ImageClassifier' else
                  ('TwoViewDataPreprocessor', 'ChannelDataPreprocessor'))
        if used not in needed:
            self._refuse(f'{place}.type={used} does not support them; use '
                         f'{" or ".join(needed)}')
        if kind == 'ImageClassifier':
            preprocessor['type'] = 'mmpretrain.ChannelClsDataPreprocessor'
            return self._fill_pipelines()
        if self.settings['dtype'] != 'uint8':
            preprocessor.setdefault('value_range', value_range_of(self.stats))
        if not any(_transforms(self.cfg.get('train_dataloader'),
                               'LoadCanvas')):
            self._refuse('no transform of the pipeline of train_dataloader '
                         'supports them; start it with LoadCanvas')
        for transform in _transforms(self.cfg, 'LoadCanvas'):
            for key, value in self.settings.items():
                self._set(transform, 'LoadCanvas', key, value)
        return []

    def _refuse(self, reason: str) -> None:
        raise ImageStatsConflict(f'{self.source} describes images of '
                                 f'{self.described}, but {reason}')

    def _set(self, node: dict[str, Any], place: str, key: str, value: Any,
             default: Any = None) -> None:
        """Set a value, unless the user has set another one."""
        dotted = f'{place}.{key}'
        default = _DEFAULTS.get(key, default)
        now = node.get(key)
        now = list(now) if isinstance(now, (list, tuple)) else now
        chosen = dotted in self.options or now not in (None, default)
        if chosen and now is not None and now != value:
            raise ImageStatsConflict(
                f'{dotted}={now!r} contradicts {self.source}, which has '
                f'{value!r}; remove one of the two, or set None')
        node[key] = value

    def _fill_pipelines(self) -> list[str]:
        """Adapt the pipelines of a classifier to the images."""
        removed: list[str] = []
        for name in ('train', 'val', 'test'):
            for node in _dicts(self.cfg.get(f'{name}_dataloader')):
                if 'pipeline' in node:
                    node['pipeline'] = self._convert(
                        node['pipeline'], removed)
        return list(dict.fromkeys(removed))

    def _convert(self, pipeline: Sequence[dict[str, Any]],
                 removed: list[str]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for transform in pipeline:
            kind = name_of(transform.get('type'))
            kind = _REPLACED.get(kind, kind)
            if kind in _FOR_COLOURS:
                removed.append(kind)
            elif kind == 'RandomResizedCrop' and made and (
                    made[-1]['type'] == 'LoadImage'):
                made[-1] = self._canvas(transform)
            elif kind not in _FOR_ALL:
                self._refuse(
                    f'{kind} of the pipeline may not support them; remove it, '
                    'or write the pipeline and the preprocessor by hand')
            elif kind.startswith('Load'):
                made.append({**transform, 'type': kind, **self.settings})
            else:
                keys = (('scale', 'edge') if kind == 'ResizeImage'
                        else transform)
                made.append({k: transform[k] for k in keys if k in transform}
                            | {'type': kind})
        return made

    def _canvas(self, crop: dict[str, Any]) -> dict[str, Any]:
        """Load and crop in one transform, with the ranges of the crop."""
        ranges: dict[str, Any] = {
            k: crop[k] for k in ('crop_ratio_range', 'aspect_ratio_range')
            if k in crop}
        return {'type': 'LoadCanvas', 'size': crop['scale'], 'flip_prob': 0.,
                'crop_ratio_range': (0.08, 1.0), **ranges, **self.settings}


def _transforms(node: Any, *kinds: str) -> Iterator[dict[str, Any]]:
    """Yield the transforms of some kinds in a part of a config."""
    return (t for t in _dicts(node) if name_of(t.get('type')) in kinds)


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all dicts in a config, from the outside in."""
    if hasattr(node, 'items'):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _dicts(value)
