"""The file in which ``cmae stats`` says what a folder's images are."""
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Union

from .decode import IMAGE_DTYPES, MAX_CHANNELS

STATS_FORMAT = 'cmae_mm image stats 1'
# What has one number for each channel.
_PER_CHANNEL = ('mean', 'std', 'min', 'max')


class ImageStatsError(ValueError):
    """A file of image statistics that cannot be used; says why."""


def read_image_stats(path: Union[str, 'os.PathLike[str]']) -> Dict[str, Any]:
    """Read and check a file that ``cmae stats`` wrote.

    All numbers are in the units of the images as ``LoadCanvas`` gives them
    with the file's ``settings``, and channels are in the file's own order
    (red, green, blue for colour images, whatever the order in memory is).

    Args:
        path (str | PathLike): The JSON file.

    Returns:
        Dict[str, Any]: With at least

        - ``format`` (str): ``STATS_FORMAT``.
        - ``images`` (int): Number of images in the folder.
        - ``channels`` (int): C, channels of each image, from 1 to 64.
        - ``dtype`` (str): 'uint8', 'uint16' or 'float32', the narrowest that
          holds every image without loss.
        - ``mean``, ``std``, ``min``, ``max`` (List[float]): Mean, standard
          deviation and range of each channel, C numbers each; deviations are
          above 0.

        and further keys that the command's documentation lists: ``sampled``,
        ``sizes``, ``types``, ``formats``, ``broken``, ``settings``.

    Raises:
        ImageStatsError: If it is none, or its numbers contradict each other.
    """
    path = Path(path).expanduser()
    try:
        stats = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise ImageStatsError(
            f'there is no file of image statistics {str(path)!r}; make it with'
            f' `cmae stats DATA --out {path}`') from None
    except (OSError, ValueError) as error:
        raise ImageStatsError(
            f'{path} cannot be read as image statistics '
            f'({type(error).__name__}: {error}); make it anew with `cmae stats'
            f' DATA --out {path}`') from error
    fault = _find_fault(stats)
    if fault:
        raise ImageStatsError(
            f'{path} is no usable file of image statistics: {fault}')
    return stats


def _find_fault(stats: Any) -> str:
    """Say what is wrong with the content, '' if nothing is."""
    if not isinstance(stats, dict) or stats.get('format') != STATS_FORMAT:
        found = stats.get('format') if isinstance(stats, dict) else stats
        return (f'its "format" must be {STATS_FORMAT!r}, but is '
                f'{str(found)[:60]!r}; `cmae stats` writes it')
    for name, most in (('images', None), ('channels', MAX_CHANNELS)):
        if not _is_count(stats.get(name), most):
            return (f'"{name}" must be a whole number of 1 or more'
                    f'{f" and at most {most}" if most else ""}, but is '
                    f'{stats.get(name)!r}')
    if stats.get('dtype') not in IMAGE_DTYPES:
        return (f'"dtype" must be one of {", ".join(IMAGE_DTYPES)}, but is '
                f'{stats.get("dtype")!r}')
    channels = stats['channels']
    for name in _PER_CHANNEL:
        if not _are_numbers(stats.get(name), channels):
            return (f'"{name}" must be a list of {channels} finite numbers, '
                    f'one for each channel, but is {stats.get(name)!r}')
    for number, (mean, std, low, high) in enumerate(
            zip(*(stats[name] for name in _PER_CHANNEL))):
        # Sums over many pixels round a little.
        slack = 1e-6 * max(abs(low), abs(high))
        if not low - slack <= mean <= high + slack:
            return (f'the mean of channel {number}, {mean}, is not within its '
                    f'range of {low} to {high}')
        if std <= 0:
            return (f'channel {number} has a standard deviation of {std}, by '
                    'which nothing can be divided: it is the same everywhere; '
                    'leave it out of the images, or write 1 in its place')
    return ''


def _is_count(value: Any, most: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)
            and value >= 1 and (most is None or value <= most))


def _are_numbers(values: Any, count: int) -> bool:
    return (isinstance(values, list) and len(values) == count
            and all(isinstance(v, (int, float)) and not isinstance(v, bool)
                    and math.isfinite(v) for v in values))


def write_image_stats(stats: Dict[str, Any],
                      path: Union[str, 'os.PathLike[str]']) -> None:
    """Write image statistics, whole or not at all.

    Args:
        stats (Dict[str, Any]): What :func:`read_image_stats` gives; the
            format's name is filled in.
        path (str | PathLike): The JSON file.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f'  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}'
        for key, value in {'format': STATS_FORMAT, **stats}.items()
    ]
    aside = path.with_name(path.name + '.tmp')
    aside.write_text('{\n' + ',\n'.join(lines) + '\n}\n', 'utf-8')
    os.replace(aside, path)
