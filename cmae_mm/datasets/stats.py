"""Statistics of the images of a data set, and their JSON file."""
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import write_file
from ..progress import Progress
from . import decode
from .names import encode_name
from .source import ImageSource, PathLike, map_numbers, open_source

STATS_FORMAT = 'cmae_mm image stats 1'
_PER_CHANNEL = ('mean', 'std', 'min', 'max')
# Number of pixel values for the quantiles.
_SAMPLED_VALUES = 2**24
_QUANTILES = (0.001, 0.999)
# Smallest aspect ratio of strips.
_STRIP = 3
# Largest number of pixels of images that are decoded whole, Pillow's limit.
_MOST_PIXELS = 2 * 89_478_485
# Largest number of images in each list.
_LISTED = 100


class ImageStatsError(ValueError):
    """A file of image statistics that cannot be used."""


class ImageMeasurement(NamedTuple):
    """Measurements of one image.

    Args:
        path (str): Name of the image.
        fault (str): 'broken', 'unfit', or '' for an image that was measured.
        reason (str): Reason why it was not measured.
        size (tuple[int, int]): Height and width in pixels.
        channels (int): Number of channels.
        colours (int): Number of channels without alpha.
        kind (str): Type of the values in the file.
        dtype (str): Type of the measured values.
        grey (bool): Whether the three colours are equal everywhere.
        missing (bool): Whether it has missing pixels.
        dicom (bool): Whether it is a DICOM file.
        moments (np.ndarray): Mean, variance, minimum and maximum of each
            channel, (4, C). NaN for a channel without valid pixels.
        pixels (np.ndarray): A sample of the pixels, float32, (P, C). Missing
            values are NaN.
        digest (bytes): Hash of the file.
        needed (int): Required ``max_pixels``, 0 for the default.
        is_part (bool): Whether its centre or a smaller scale was measured.
        is_animated (bool): Whether it is the first of several frames.
    """

    path: str
    fault: str = ''
    reason: str = ''
    size: tuple[int, int] = (0, 0)
    channels: int = 0
    colours: int = 0
    kind: str = ''
    dtype: str = ''
    grey: bool = False
    missing: bool = False
    dicom: bool = False
    moments: np.ndarray = np.zeros((4, 0))
    pixels: np.ndarray = np.zeros((0, 0))
    digest: bytes = b''
    needed: int = 0
    is_part: bool = False
    is_animated: bool = False

    def select_channels(self, count: int) -> 'ImageMeasurement':
        """Return the measurements as if read with ``count`` channels."""
        order: Any = slice(0, count)
        if count == 3 and self.colours == 1:
            order = [0, 0, 0]
        elif count not in (self.channels, self.colours) and not (
                count == 1 and self.grey):
            choice = (f'; bands=(...) chooses {count} of them'
                      if self.channels > count else '')
            return self._replace(fault='unfit', reason=(
                f'{encode_name(self.path)} has {self.channels} channel(s), '
                f'not {count}{choice}'))
        return self._replace(
            moments=self.moments[:, order], pixels=self.pixels[:, order])


def measure_images(data: PathLike,
                   *,
                   sample: int = 2000,
                   side: int = 256,
                   num_workers: int | None = None,
                   channels: int | None = None,
                   dtype: str | None = None,
                   **settings: Any) -> dict[str, Any]:
    """Measure images, and choose the settings for decoding them.

    All images have the same weight, regardless of size. Missing pixels (NaN,
    nodata) are ignored.

    Args:
        data (str | PathLike): Folder of images, list file, store or shards. If
            there is a part 'train', only this part is measured.
        sample (int): Number of images to decode, drawn at random with a fixed
            seed; 0 for all. Defaults to 2000.
        side (int): Count images with a shorter side below this, in pixels.
            Defaults to 256.
        num_workers (int, optional): Number of data workers. Defaults to one
            for each CPU core, at most 8.
        channels (int, optional): Number of channels. Defaults to the most
            frequent one; 3 for a mixture of grey and colour.
        dtype (str, optional): Type of the values. Defaults to the narrowest
            one for all images; float32 with a range or a window.
        **settings: Other arguments of
            :class:`~cmae_mm.datasets.decode.ImageSettings`.

    Returns:
        dict[str, Any]: See :func:`read_image_stats`.

    Raises:
        ValueError: If there are no images, or none that can be measured.
        MissingLibrary: If an optional library is needed.
    """
    if settings.get('window') or settings.get('value_range'):
        dtype = dtype or 'float32'
    wanted = decode.make_settings(channels=channels, dtype=dtype, **settings)
    source = open_source(data, split='train')
    measured = _measure_sample(source, sample, wanted, num_workers)
    read = [f for f in measured if not f.fault]
    count = channels or len(wanted.bands or ()) or _choose_channels(read)
    selected = [f.select_channels(count) for f in read]
    fitting = [f for f in selected if not f.fault]
    unfit = [f for f in (*measured, *selected) if f.fault == 'unfit']
    broken = [f for f in measured if f.fault == 'broken']
    if not fitting:
        first = (unfit or broken)[0]
        reason = first.reason if unfit else (
            f'{encode_name(first.path)}: {first.reason}')
        raise decode.UndecodableImage(
            f'none of the {len(measured)} images of {source.root} that were '
            f'decoded can be used: {reason}')
    missing = sum(f.missing for f in fitting)
    used = {k: v for k, v in wanted._asdict().items()
            if v is not None and (k, v) != ('max_pixels', decode.MAX_PIXELS)}
    needed = max(f.needed for f in fitting)
    if needed:  # rounded up, since other images may be larger
        unit = 10**(len(str(needed)) - 2)
        used['max_pixels'] = -(-needed // unit) * unit
    used.update(channels=count, dtype=max(
        (f.dtype for f in fitting), key=decode.IMAGE_DTYPES.index))
    if missing:
        used.setdefault('fill', 'mean')
    merged = _merge(fitting, source.root)
    duplicates = _find_duplicates(fitting)
    return dict(
        data=source.root, source=source.describe(), images=len(source),
        sampled=len(measured), channels=count, dtype=used['dtype'], **merged,
        sizes=_sizes(fitting, side),
        types=_count(f'{f.channels} x {f.kind}' for f in read),
        formats=_count(Path(name).suffix.lower() for name in source.names),
        missing=missing, alpha=sum(f.channels > f.colours for f in fitting),
        broken=_list(broken), broken_count=len(broken),
        unfit=_list(unfit), unfit_count=len(unfit),
        duplicates=duplicates[:_LISTED], duplicate_count=len(duplicates),
        settings=used,
        notes=_notes(fitting, count, wanted, merged['std'], used))


def _measure_sample(source: ImageSource, sample: int,
                    settings: decode.ImageSettings,
                    num_workers: int | None) -> list[ImageMeasurement]:
    numbers: Any = range(len(source))
    if 0 < sample < len(source):
        numbers = np.sort(np.random.default_rng(0).choice(
            len(source), sample, replace=False))
    pixels = _SAMPLED_VALUES // (len(numbers) * (settings.channels or 4))
    measure = partial(_measure_image, source, settings,
                      min(max(pixels, 16), 1024))
    measured = []
    with Progress(len(numbers), 'measure') as progress:
        for fact in map_numbers(measure, numbers, num_workers):
            measured.append(fact)
            progress.update()
    return measured


def _measure_image(source: ImageSource, settings: decode.ImageSettings,
                   pixels: int, number: int) -> ImageMeasurement:
    """Decode an image, measure it, and sample its pixels."""
    path = source.names[number]
    name = encode_name(path)
    settings = settings._replace(channels=None)
    try:
        data = source.open(number)
        raw, size, needed = _read(data, name, settings)
        kind = raw.pixels.dtype.name
        fill = 'mean' if settings.fill is None else settings.fill
        raw, missing = decode.prepare(
            raw, name, settings._replace(fill=fill))
        values = decode.change_type(raw, name, settings)
    except decode.UnfitImage as error:
        return ImageMeasurement(path, 'unfit', str(error))
    except (OSError, ValueError) as error:
        return ImageMeasurement(path, 'broken', ' '.join(str(error).split()))
    valid = None if missing is None else ~missing
    colours = values.shape[2] - raw.alpha
    return ImageMeasurement(
        path,
        size=size,
        channels=values.shape[2],
        colours=colours,
        kind=kind,
        dtype=values.dtype.name,
        grey=colours == 3 and decode.is_grey(values),
        missing=missing is not None,
        dicom=decode.is_dicom(decode.first_bytes(data), path),
        moments=measure(values, valid),
        pixels=_sample_pixels(values, valid, pixels),
        digest=_digest(data),
        needed=needed,
        is_part=values.shape[:2] != size,
        is_animated=raw.is_animated)


def _read(data: Any, path: str, settings: decode.ImageSettings
          ) -> tuple[decode.RawImage, tuple[int, int], int]:
    """Read an image; return also its size, and ``max_pixels`` if needed."""
    centre = decode.read_centre(data, path, settings)
    if centre is not None:
        return (*centre, 0)
    data = decode.read_file_content(data)
    try:
        raw = decode.read_image(data, path, settings)
        return raw, raw.pixels.shape[:2], 0
    except decode.TooLargeImage as error:
        if decode.is_jpeg(data):  # training reads a smaller scale
            raw = decode.read_image(data, path, settings, 1)
            scale = max(error.size) / max(raw.pixels.shape[:2])
            height, width = (round(v * scale) for v in raw.pixels.shape[:2])
            return raw, (height, width), 0
        if settings.max_pixels != decode.MAX_PIXELS or (
                error.pixels > _MOST_PIXELS):
            raise
        raw = decode.read_image(
            data, path, settings._replace(max_pixels=_MOST_PIXELS))
        return raw, raw.pixels.shape[:2], error.pixels


def _digest(data: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with data.open('rb') if isinstance(data, Path) else io.BytesIO(
            data) as file:
        for block in iter(partial(file.read, 2**20), b''):
            digest.update(block)
    return digest.digest()


def measure(values: np.ndarray,
            valid: np.ndarray | None = None) -> np.ndarray:
    """Measure the channels of an image in float64.

    Args:
        values (np.ndarray): (H, W, C).
        valid (np.ndarray, optional): Mask of valid values, of the same shape.
            Defaults to all.

    Returns:
        np.ndarray: Mean, variance, minimum and maximum of each channel,
        (4, C). NaN for a channel without valid values.
    """
    moments = np.full((4, values.shape[2]), np.nan)
    for channel in range(values.shape[2]):
        pixels = values[..., channel]
        if valid is not None:
            pixels = pixels[valid[..., channel]]
        if pixels.size:
            pixels = pixels.astype(np.float64)
            moments[:, channel] = (pixels.mean(), pixels.var(), pixels.min(),
                                   pixels.max())
    return moments


def _sample_pixels(values: np.ndarray, valid: np.ndarray | None,
                   count: int) -> np.ndarray:
    flat: np.ndarray = values.reshape(-1, values.shape[2])
    chosen = np.random.default_rng(0).integers(
        len(flat), size=min(count, len(flat)))
    pixels = flat[chosen].astype(np.float32)
    if valid is not None:
        pixels[~valid.reshape(flat.shape)[chosen]] = np.nan
    return pixels


def _find_duplicates(measured: list[ImageMeasurement]) -> list[list[str]]:
    """Pair the names of identical files, in order."""
    first: dict[bytes, str] = {}
    return [[first[f.digest], f.path] for f in measured
            if first.setdefault(f.digest, f.path) != f.path]


def _choose_channels(measured: list[ImageMeasurement]) -> int:
    counts = Counter(f.colours for f in measured)
    if not counts or set(counts) == {1, 3}:
        return 3
    return counts.most_common(1)[0][0]


def _merge(measured: list[ImageMeasurement],
           root: str) -> dict[str, list[float]]:
    """Merge the moments of images, each with the same weight."""
    mean, var, low, high = np.stack([f.moments for f in measured], axis=1)
    empty = np.flatnonzero(np.isnan(mean).all(0)).tolist()
    if empty:
        raise decode.UndecodableImage(
            f'no image of {root} has a valid pixel in channel(s) '
            f'{", ".join(map(str, empty))}; choose other channels with bands '
            '(--bands)')
    low, high = np.nanmin(low, 0), np.nanmax(high, 0)
    values = dict(
        mean=np.nanmean(mean, 0),
        std=(np.nanmean(var, 0) + np.nanvar(mean, 0))**0.5,
        min=low, max=high, low=low.copy(), high=high.copy())
    pixels = np.concatenate([f.pixels for f in measured])
    # The sample may have no valid pixel of a channel.
    known = ~np.isnan(pixels).all(0)
    values['low'][known], values['high'][known] = np.nanquantile(
        pixels[:, known], _QUANTILES, axis=0)
    return {name: [_round(v) for v in value] for name, value in values.items()}


def _round(value: float) -> float:
    """Round to nine digits; integral values become int."""
    number = float(f'{value:.9g}')
    return int(number) if number.is_integer() else number


def _sizes(measured: list[ImageMeasurement], side: int) -> dict[str, Any]:
    sizes = np.array([f.size for f in measured])
    height, width = ([int(f(s)) for f in (np.min, np.median, np.max)]
                     for s in sizes.T)
    short, long = sizes.min(1), sizes.max(1)
    return dict(height=height, width=width, side=side,
                smaller=int((short < side).sum()),
                strips=int((long > _STRIP * short).sum()))


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _list(measured: list[ImageMeasurement]) -> list[dict[str, str]]:
    return [dict(path=f.path, reason=f.reason) for f in measured[:_LISTED]]


def _notes(measured: list[ImageMeasurement], count: int,
           wanted: decode.ImageSettings, std: list[float],
           used: dict[str, Any]) -> list[str]:
    """Collect notes for the user."""
    large = [f for f in measured if f.needed]
    parts = sum(f.is_part for f in measured)
    animations = sum(f.is_animated for f in measured)
    others = sum(not f.dicom for f in measured)
    kinds = sorted({decode.natural_dtype(f.kind) for f in measured})
    notes: dict[str, Any] = {
        f'window is for DICOM files; the values of {others:,} other files are '
        'unchanged (value_range is for all files)':
            wanted.window is not None and others,
        f'values are of several types ({", ".join(kinds)}) and are not '
        'rescaled; check that their units are equal, or set '
        "value_range='per_image'":
            len(kinds) > 1 and wanted.value_range is None,
        'all colour images are grey; channels=1 contains the same':
            count == 3 and all(f.grey or f.colours == 1 for f in measured),
        "some images have missing pixels: fill='mean' is set":
            wanted.fill is None and any(f.missing for f in measured),
        f'{len(large):,} images have more than {decode.MAX_PIXELS:,} pixels: '
        f'max_pixels={used.get("max_pixels")} is set, and a worker needs up '
        f'to {used.get("max_pixels", 0) * 16 // 10**6:,} MB':
            bool(large),
        f'{parts:,} images have more than {wanted.max_pixels:,} pixels; their '
        'centre or a smaller scale was measured, as training reads parts of '
        'them':
            parts,
        f'of {animations:,} animations only the first frame is used':
            animations,
        f'alpha is dropped; channels={count + 1} keeps it if all images have '
        'it':
            any(count == f.colours < f.channels for f in measured)
    }
    var = np.stack([f.moments[1] for f in measured])
    same = np.array(std) == 0
    for mask, text in (
            (np.isnan(var).any(0), 'without a valid pixel in some images, '
             'which are ignored for it'),
            (same, 'constant in all images, which training does not accept; '
             'choose other channels with bands (--bands)'),
            ((np.nanmax(var, 0) == 0) & ~same, 'constant in each image')):
        numbers = ', '.join(map(str, np.flatnonzero(mask)))
        notes[f'channel(s) {numbers}: {text}'] = numbers
    return [note for note, holds in notes.items() if holds]


def read_image_stats(path: PathLike) -> dict[str, Any]:
    """Read and check a file of ``cmae stats``.

    All numbers are in units of images decoded with the file's ``settings``.
    Channels are in the order of the image files (red, green, blue for
    colours).

    Args:
        path (str | PathLike): The JSON file.

    Returns:
        dict[str, Any]: With at least

        - ``format`` (str): ``STATS_FORMAT``.
        - ``images`` (int): Number of images.
        - ``channels`` (int): C, number of channels, from 1 to 64.
        - ``dtype`` (str): 'uint8', 'uint16' or 'float32', the narrowest type
          for all images without loss.
        - ``mean``, ``std``, ``min``, ``max`` (list[float]): Mean, standard
          deviation (above 0) and range of each channel, C numbers each.

        ``docs/data.md`` lists the other keys.

    Raises:
        ImageStatsError: If the file cannot be read or used.
    """
    path = Path(path).expanduser()
    try:
        stats = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise ImageStatsError(
            f'{path} cannot be read as image statistics ({reason}); write it '
            f'with `cmae stats DATA --out {path}`') from error
    fault = _find_fault(stats if isinstance(stats, dict) else {})
    if fault:
        raise ImageStatsError(f'{path}: {fault}')
    return stats


def _find_fault(stats: dict[str, Any]) -> str:
    """Describe a fault in the content; '' if there is none."""
    channels = stats.get('channels')
    most = decode.MAX_CHANNELS
    numbers = f'a list of {channels} finite numbers, one for each channel'
    allowed: dict[str, tuple[bool, str]] = dict(
        format=(stats.get('format') == STATS_FORMAT, repr(STATS_FORMAT)),
        images=(_is_count(stats.get('images')), 'a whole number from 1'),
        channels=(_is_count(channels, most), f'a number from 1 to {most}'),
        dtype=(stats.get('dtype') in decode.IMAGE_DTYPES,
               f'one of {", ".join(decode.IMAGE_DTYPES)}'))
    for name in (*_PER_CHANNEL, *({'low', 'high'} & set(stats))):
        allowed[name] = _are_numbers(stats.get(name), channels), numbers
    for name, (good, text) in allowed.items():
        if not good:
            return (f'"{name}" must be {text}, but is '
                    f'{str(stats.get(name))[:60]!r}')
    for number, (mean, std, low, high) in enumerate(
            zip(*(stats[name] for name in _PER_CHANNEL))):
        # Tolerance for rounded sums.
        slack = 1e-6 * max(abs(low), abs(high))
        if not low - slack <= mean <= high + slack:
            return (f'the mean of channel {number}, {mean}, is not within its '
                    f'range of {low} to {high}')
        if std <= 0:
            return (f'channel {number} has a standard deviation of {std} '
                    'because it is constant; choose other channels with '
                    '`cmae stats --bands`, or set it to 1')
    settings = stats.get('settings', {})
    try:
        decode.make_settings(**settings)
    except (TypeError, ValueError) as error:
        return f'its "settings" cannot be used ({error})'
    for name in {'channels', 'dtype'} & set(settings):
        if settings[name] != stats[name]:
            return (f'"{name}" is {stats[name]!r}, but its "settings" have '
                    f'{settings[name]!r}')
    return ''


def _is_count(value: Any, most: float = float('inf')) -> bool:
    return type(value) is int and 1 <= value <= most


def _are_numbers(values: Any, count: Any) -> bool:
    return (isinstance(values, list) and len(values) == count
            and all(type(v) in (int, float) and abs(v) < 1e300
                    for v in values))


def write_image_stats(stats: dict[str, Any], path: PathLike) -> None:
    """Write image statistics atomically.

    Args:
        stats (dict[str, Any]): The result of :func:`measure_images`.
        path (str | PathLike): The JSON file.
    """
    lines = [
        f'  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}'
        for key, value in {'format': STATS_FORMAT, **stats}.items()
    ]
    write_file(path, '{\n' + ',\n'.join(lines) + '\n}\n')
