"""What the images of a folder are, and the settings that they need."""
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..dependencies import cpu_count
from ..progress import Progress
from .decode import (
    ImageSettings,
    UndecodableImage,
    make_settings,
    natural_dtype,
)
from .image_facts import ImageFacts, look_at, near_pairs
from .image_stats import IMAGE_DTYPES
from .source import ImageSource, open_source

# In all, for the quantiles.
_KEPT_VALUES = 2**24
# What is listed by name.
_LISTED = 100
_STRIP = 3
_QUANTILES = (0.001, 0.999)


class _Channels(NamedTuple):
    """Moments of one image, of the channels that are wanted."""

    mean: np.ndarray
    var: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pixels: np.ndarray


class _Files(Dataset):
    """Images of a source, measured."""

    def __init__(self, source: ImageSource, chosen: np.ndarray,
                 settings: ImageSettings, kept: int) -> None:
        self.source, self.chosen = source, chosen
        self.settings, self.kept = settings, kept

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> ImageFacts:
        number = int(self.chosen[index])
        path = self.source.names[number]
        try:
            data = self.source.read(number)
        except (OSError, ValueError) as error:
            return ImageFacts(path, 'broken',
                              f'{getattr(error, "strerror", "") or error}')
        return look_at(data, path, self.settings, self.kept)


def measure_images(data: Union[str, 'os.PathLike[str]'],
                   *,
                   sample: int = 2000,
                   side: int = 256,
                   num_workers: Optional[int] = None,
                   channels: Optional[int] = None,
                   dtype: Optional[str] = None,
                   **settings: Any) -> Dict[str, Any]:
    """Measure a folder's images, and find the settings that they need.

    Each image counts the same, however large it is, as in training. Missing
    pixels (NaN, nodata) are left out.

    Args:
        data (str | PathLike): Folder of images, or a store; its sub-folder
            'train' is taken where there is one, as in pre-training.
        sample (int): How many images to decode, drawn at random but the same
            each time; 0 for all. Defaults to 2000.
        side (int): Side of the canvas in pixels that images smaller than it
            are counted for. Defaults to 256.
        num_workers (int, optional): Processes that read images. Defaults to
            one for each processor core, at most 8.
        channels (int, optional): Number of channels that is wanted. Defaults
            to what most images have; 3 where grey ones are among colours.
        dtype (str, optional): Type that is wanted. Defaults to the narrowest
            that holds the types of all files; with a range or a window to
            float32.
        **settings: Further ones of
            :class:`~cmae_mm.datasets.decode.ImageSettings`.

    Returns:
        Dict[str, Any]: What
        :func:`~cmae_mm.datasets.image_stats.read_image_stats` describes.

    Raises:
        ValueError: If there are no images, or none that can be read and
            fits.
        MissingLibrary: If an optional library is needed; names a file.
    """
    if dtype is None and (settings.get('window') or
                          settings.get('value_range')):
        dtype = 'float32'
    wanted = make_settings(channels=channels, dtype=dtype, **settings)
    source = open_source(data, split='train')
    root, paths = source.root, source.names
    chosen: np.ndarray = np.arange(len(paths))
    if 0 < sample < len(paths):
        chosen = np.sort(np.random.default_rng(0).choice(
            len(paths), sample, replace=False))
    facts = _look(source, chosen, wanted, num_workers)
    read = [f for f in facts if not f.fault]
    count = channels or (len(wanted.bands) if wanted.bands else
                         _choose_channels(read))
    fitting, moments, unfit = [], [], [f for f in facts if f.fault == 'unfit']
    for fact in read:
        found = _of_channels(fact, count)
        if found is None:
            unfit.append(fact._replace(
                fault='unfit', reason=_of_other_channels(fact, count)))
        else:
            fitting.append(fact)
            moments.append(found)
    broken = [f for f in facts if f.fault == 'broken']
    if not fitting:
        first = (unfit or broken)[0]
        why = first.reason if unfit else f'{first.path}: {first.reason}'
        raise UndecodableImage(
            f'none of the {len(facts)} images of {root} that were looked at '
            f'can be read so: {why}')
    dtypes = {f.dtype for f in fitting}
    dtype = max(dtypes, key=IMAGE_DTYPES.index)
    missing = sum(f.missing for f in fitting)
    used = {k: v for k, v in wanted._asdict().items() if v is not None}
    used.update(channels=count, dtype=dtype)
    if missing:
        used.setdefault('fill', 'mean')
    pairs = near_pairs(fitting, _LISTED + 1)
    result: Dict[str, Any] = dict(
        data=str(root), images=len(paths), sampled=len(facts),
        channels=count, dtype=dtype, **_merge(moments))
    result.update(
        sizes=_sizes(fitting, side),
        types=_count(f'{len(f.mean)} x {f.kind}' for f in read),
        formats=_count(Path(p).suffix.lower() for p in paths),
        missing=missing,
        alpha=sum(f.alpha for f in fitting),
        broken=_list(broken),
        broken_count=len(broken),
        unfit=_list(unfit),
        unfit_count=len(unfit),
        near_duplicates=[[fitting[a].path, fitting[b].path]
                         for a, b in pairs[:_LISTED]],
        settings=used,
        notes=_notes(fitting, count, used, wanted))
    return result


def _look(source: ImageSource, chosen: np.ndarray,
          settings: ImageSettings,
          num_workers: Optional[int]) -> List[ImageFacts]:
    if num_workers is None:
        num_workers = min(8, cpu_count())
    channels = settings.channels or 4
    kept = min(max(_KEPT_VALUES // (len(chosen) * channels), 16), 1024)
    loader = DataLoader(
        _Files(source, chosen, settings, kept), 8,
        num_workers=num_workers if len(chosen) > 64 else 0, collate_fn=list)
    facts: List[ImageFacts] = []
    with Progress(len(chosen), 'measure') as progress:
        for batch in loader:
            facts += batch
            progress.update(len(batch))
    return facts


def _choose_channels(facts: List[ImageFacts]) -> int:
    """Choose the number of channels that most images have."""
    counts = Counter(len(f.mean) - f.alpha for f in facts)
    if not counts:
        return 3
    if set(counts) == {1, 3}:
        return 3
    return counts.most_common(1)[0][0]


def _of_channels(fact: ImageFacts, count: int) -> Optional[_Channels]:
    """Give an image's moments as it is read with so many channels."""
    found = len(fact.mean)
    colours = found - fact.alpha
    order: Any
    if count in (found, colours):
        order = slice(0, count)
    elif count == 3 and colours == 1:
        order = [0, 0, 0]
    elif count == 1 and fact.grey:
        order = slice(0, 1)
    else:
        return None
    return _Channels(fact.mean[order], fact.var[order], fact.low[order],
                     fact.high[order], fact.pixels[:, order])


def _of_other_channels(fact: ImageFacts, count: int) -> str:
    found = len(fact.mean)
    choice = (f'; bands=(...) chooses {count} of them' if found > count
              else '')
    return f'{fact.path} has {found} channel(s), not {count}{choice}'


def _merge(moments: List[_Channels]) -> Dict[str, List[float]]:
    """Bring the moments of images together, each with the same weight."""
    means = np.stack([m.mean for m in moments])
    var = np.stack([m.var for m in moments]).mean(0) + means.var(0)
    low = np.stack([m.low for m in moments]).min(0)
    high = np.stack([m.high for m in moments]).max(0)
    pixels = np.concatenate([m.pixels for m in moments])
    ends = np.quantile(pixels, _QUANTILES, axis=0) if len(pixels) else (
        low, high)
    values = dict(mean=means.mean(0), std=var**0.5, min=low, max=high,
                  low=ends[0], high=ends[1])
    return {name: [_plain(v) for v in value]
            for name, value in values.items()}


def _plain(value: Any) -> float:
    """Round to what a person reads; whole numbers stay so."""
    number = float(f'{value:.9g}')
    return int(number) if number.is_integer() else number


def _sizes(facts: List[ImageFacts], side: int) -> Dict[str, Any]:
    heights, widths = (np.array(values)
                       for values in zip(*(f.size for f in facts)))
    short, long = np.minimum(heights, widths), np.maximum(heights, widths)
    return dict(
        height=[int(f(heights)) for f in (np.min, np.median, np.max)],
        width=[int(f(widths)) for f in (np.min, np.median, np.max)],
        side=side,
        smaller=int((short < side).sum()),
        strips=int((long > _STRIP * short).sum()))


def _count(values: Any) -> Dict[str, int]:
    return dict(Counter(values).most_common())


def _list(facts: List[ImageFacts]) -> List[Dict[str, str]]:
    return [dict(path=f.path, reason=f.reason) for f in facts[:_LISTED]]


def _notes(facts: List[ImageFacts], count: int, used: Dict[str, Any],
           wanted: ImageSettings) -> List[str]:
    """Say what a person should know before training on these images."""
    notes = []
    others = sum(not f.dicom for f in facts)
    if wanted.window is not None and others:
        notes.append(
            f'window is for DICOM files, and {others:,} are none: their values'
            ' are taken as they are; value_range is for all files')
    kinds = {natural_dtype(f.kind) for f in facts}
    if len(kinds) > 1 and wanted.value_range is None:
        notes.append(
            f'values are of several types ({", ".join(sorted(kinds))}), which '
            'are taken as they are: see that their units are the same, or sort'
            " them into folders, or set value_range='per_image'")
    if count == 3 and all(f.grey or len(f.mean) - f.alpha == 1
                          for f in facts):
        notes.append('all colours are grey: channels=1 holds the same')
    if used.get('fill') and wanted.fill is None:
        notes.append("some images have missing pixels, which fill='mean' "
                     'stands for')
    if any(f.alpha and len(f.mean) - 1 == count for f in facts):
        notes.append(f'alpha is left out; channels={count + 1} keeps it where '
                     'all images have it')
    if max(f.var.min() for f in facts) == 0:
        notes.append('a channel is the same everywhere in each image')
    return notes
