"""What a config takes from the file of image statistics that it names."""
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Sequence, Tuple

if TYPE_CHECKING:
    from mmengine.config import Config

KEY = 'image_stats'
# Of images, as against those of crops and flips.
IMAGE_SETTINGS = ('channels', 'dtype', 'value_range', 'bands', 'fill',
                  'window', 'pages')
# ImageNet's, those of the packaged configs: no choice of the person's.
_DEFAULTS: Dict[str, List[float]] = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# So far from the mean, in deviations, do black and white lie at most: single
# pixels may have any value.
_WIDTH = 4
# What becomes of a classifier's transforms for other images than RGB.
_FOR_COLOURS = ('RandAugment', 'AutoAugment', 'RandomErasing', 'ColorJitter',
                'RandomGrayscale', 'Lighting', 'Albumentations')
_FOR_ALL = ('SeedDraws', 'LoadCanvas', 'ResizeImage', 'RandomFlip',
            'CenterCrop', 'PackInputs')
_LOADING = ('LoadImage', 'LoadImageFromFile')


class ImageStatsConflict(ValueError):
    """Image statistics that contradict a config; the message says where."""


def apply_image_stats(cfg: 'Config', options: Sequence[str] = ()) -> None:
    """Fill in what the file says that ``image_stats`` names, in place.

    Mean, deviation, type and range of the data preprocessor, the backbone's
    ``in_channels``, and how images are decoded. ``image_stats`` then becomes a
    dict that says where this is from: applied once, it is not applied again,
    and a config that is written with it needs the file no more.

    For other images than colours of 8 bits, a classifier's transforms that
    are for colours are left out, which the log says.

    Args:
        cfg (Config): A config for the images that the file is about.
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
    from mmengine.logging import print_log

    from .datasets.stats import read_image_stats
    stats = read_image_stats(name)
    filler = _Filler(cfg, str(name), stats, options)
    left_out = filler.fill()
    cfg[KEY] = dict(
        file=str(Path(os.path.abspath(Path(name).expanduser()))),
        images=stats['images'], **filler.settings)
    said = (f'image_stats: {filler.described}, mean, deviation and range of '
            f'{stats["images"]:,} images from {name}')
    if left_out:
        said += (f'; {", ".join(left_out)} of the pipeline are for colours of '
                 '8 bits and were left out')
    print_log(said, logger='current')


def is_plain(settings: Dict[str, Any]) -> bool:
    """Say whether images are colours of 8 bits with nothing else asked."""
    rest = {k: v for k, v in settings.items() if v is not None}
    return (rest.pop('channels', 3), rest.pop('dtype', 'uint8'), rest) == (
        3, 'uint8', {})


def settings_of(stats: Dict[str, Any]) -> Dict[str, Any]:
    """Give how the images that statistics are about are decoded."""
    given = {k: v for k, v in (stats.get('settings') or {}).items()
             if k in IMAGE_SETTINGS and v is not None}
    return {**given, 'channels': stats['channels'], 'dtype': stats['dtype']}


def image_settings(cfg: 'Config') -> Dict[str, Any]:
    """Give how a config's training images are decoded.

    Args:
        cfg (Config): A config.

    Returns:
        Dict[str, Any]: Arguments of ``LoadImage``, as far as they are set;
        empty for colours of 8 bits.
    """
    for transform in _dicts(cfg.get('train_dataloader')):
        if name_of(transform.get('type')) in (
                'LoadCanvas', 'LoadImage', 'LoadImageOrSkip'):
            found = {k: transform[k] for k in IMAGE_SETTINGS
                     if transform.get(k) is not None}
            return {} if is_plain(found) else found
    return {}


def value_range_of(stats: Dict[str, Any]) -> Tuple[List[float], List[float]]:
    """Give black and white of each channel.

    Of three channels, which are colours and cut off there, the least and the
    greatest value. Of others the quantiles that the statistics have, or four
    deviations from the mean where the extremes lie farther away.
    """
    if stats['channels'] == 3:
        return list(stats['min']), list(stats['max'])
    ends = []
    rows = zip(stats['min'], stats['max'], stats['mean'], stats['std'],
               stats.get('low') or stats['min'],
               stats.get('high') or stats['max'])
    for least, greatest, mean, std, low, high in rows:
        low, high = (max(low, mean - _WIDTH * std),
                     min(high, mean + _WIDTH * std))
        # a channel that is nearly the same everywhere has no quantiles
        ends.append((low, high) if low < high else (least, greatest))
    lows, highs = zip(*ends)
    return list(lows), list(highs)


class _Filler:
    """Fills a config; see :func:`apply_image_stats`."""

    def __init__(self, cfg: 'Config', file: str, stats: Dict[str, Any],
                 options: Sequence[str]) -> None:
        self.cfg, self.file, self.stats = cfg, file, stats
        self.options = set(options)
        self.settings = settings_of(stats)
        self.is_plain = is_plain(self.settings)
        count = self.settings['channels']
        self.described = (f'{count} channel{"s" if count > 1 else ""} of '
                          f'{self.settings["dtype"]}')

    def fill(self) -> List[str]:
        """Fill in all; give the transforms that were left out."""
        model: Any = self.cfg.get('model') or {}
        kind = name_of(model.get('type'))
        inside = 'data_preprocessor' in model
        preprocessor = model if inside else self.cfg
        preprocessor = preprocessor.get('data_preprocessor')
        place = f'{"model." if inside else ""}data_preprocessor'
        if kind not in ('CMAE', 'ImageClassifier') and not self.is_plain:
            raise ImageStatsConflict(
                f'{KEY}={self.file} says that images have {self.described}, '
                f'but a model of type {kind!r} reads colours of 8 bits alone:'
                ' detection and segmentation take no others yet')
        if preprocessor is None:
            raise ImageStatsConflict(
                f'{KEY} fills in the data_preprocessor, which this config '
                'lacks')
        for key in ('mean', 'std'):
            self._set(preprocessor, place, key, list(self.stats[key]))
        if self.is_plain:
            return []
        backbone = model.backbone
        self._set(backbone, 'model.backbone', 'in_channels',
                  self.settings['channels'])
        self._set(preprocessor, place, 'dtype', self.settings['dtype'])
        if preprocessor.get('to_rgb'):
            self._set(preprocessor, place, 'to_rgb', False, default=True)
        if kind == 'ImageClassifier':
            self._check_kind(preprocessor, place, 'ClsDataPreprocessor',
                             'ChannelClsDataPreprocessor')
            preprocessor['type'] = 'mmpretrain.ChannelClsDataPreprocessor'
            return self._fill_pipelines()
        self._check_kind(preprocessor, place, 'TwoViewDataPreprocessor',
                         'ChannelDataPreprocessor')
        if self.settings['dtype'] != 'uint8':
            preprocessor.setdefault(
                'value_range', value_range_of(self.stats))
        self._fill_loading()
        return []

    def _check_kind(self, preprocessor: Dict[str, Any], place: str,
                    *allowed: str) -> None:
        if name_of(preprocessor.get('type')) not in allowed:
            raise ImageStatsConflict(
                f'{KEY}={self.file} says that images have {self.described}, '
                f'but {place}.type={name_of(preprocessor.get("type"))} does '
                f'not take such; needed is {" or ".join(allowed)}, as in '
                'quickstart/cmae_vit-mini_canvas')

    def _set(self, node: Dict[str, Any], place: str, key: str, value: Any,
             default: Any = None) -> None:
        """Set a value, unless the person has set another one."""
        dotted = f'{place}.{key}'
        default = _DEFAULTS.get(key, default)
        now = node.get(key)
        now = list(now) if isinstance(now, (list, tuple)) else now
        chosen = dotted in self.options or now not in (None, default)
        if chosen and now is not None and now != value:
            raise ImageStatsConflict(
                f'{dotted}={now!r} contradicts {KEY}={self.file}, which says '
                f'{value!r}; leave one of the two out (None stands for '
                'nothing)')
        node[key] = value

    def _fill_loading(self) -> None:
        """Tell what loads the images of pre-training how to decode them."""
        found = [t for t in _dicts(self.cfg)
                 if name_of(t.get('type')) == 'LoadCanvas']
        used = [t for t in _dicts(self.cfg.get('train_dataloader'))
                if name_of(t.get('type')) == 'LoadCanvas']
        if not used:
            raise ImageStatsConflict(
                f'{KEY}={self.file} says that images have {self.described}, '
                'but nothing in the pipeline of train_dataloader takes such; '
                'begin it with LoadCanvas, as in '
                'quickstart/cmae_vit-mini_canvas')
        for transform in found:
            for key, value in self.settings.items():
                self._set(transform, 'LoadCanvas', key, value)

    def _fill_pipelines(self) -> List[str]:
        """Make a classifier's pipelines such for any images."""
        left_out: List[str] = []
        for name in ('train', 'val', 'test'):
            for node in _dicts(self.cfg.get(f'{name}_dataloader')):
                if 'pipeline' in node:
                    node['pipeline'] = self._convert(
                        node['pipeline'], left_out)
        return list(dict.fromkeys(left_out))

    def _convert(self, pipeline: Sequence[Dict[str, Any]],
                 left_out: List[str]) -> List[Dict[str, Any]]:
        made: List[Dict[str, Any]] = []
        for transform in pipeline:
            kind = name_of(transform.get('type'))
            if kind in _FOR_COLOURS:
                left_out.append(kind)
            elif kind in _LOADING:
                made.append(dict(type='LoadImage', **self.settings))
            elif kind == 'ResizeEdge':
                made.append(dict(type='ResizeImage', **{
                    k: v for k, v in transform.items()
                    if k in ('scale', 'edge')}))
            elif kind == 'RandomResizedCrop':
                made[-1] = self._canvas(made[-1], transform)
            elif kind in _FOR_ALL:
                made.append(dict(transform))
            else:
                raise ImageStatsConflict(
                    f'{KEY}={self.file} says that images have '
                    f'{self.described}, of which {kind} is not known to work;'
                    ' leave it out of the pipeline, or write the pipeline for '
                    'these images and the preprocessor by hand')
        return made

    def _canvas(self, loading: Dict[str, Any],
                crop: Dict[str, Any]) -> Dict[str, Any]:
        """Load and crop in one, as the transform of crops is for colours."""
        if loading['type'] != 'LoadImage':
            raise ImageStatsConflict(
                'RandomResizedCrop does not stand behind LoadImage in the '
                f'pipeline, so that {KEY} cannot make the two one; write '
                'LoadCanvas in their place')
        known = dict(crop_ratio_range=(0.08, 1.0))
        known.update({k: v for k, v in crop.items() if k in (
            'crop_ratio_range', 'aspect_ratio_range')})
        return dict(type='LoadCanvas', size=crop['scale'], flip_prob=0.,
                    **known, **self.settings)


def name_of(kind: Any) -> str:
    """Give the bare name of a type in a config, a class or a string."""
    if not isinstance(kind, str):
        kind = getattr(kind, '__name__', str(kind))
    return kind.split('.')[-1]


def _dicts(node: Any) -> Iterator[Dict[str, Any]]:
    """Yield all dicts in a config, from the outside in."""
    if hasattr(node, 'items'):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _dicts(value)
