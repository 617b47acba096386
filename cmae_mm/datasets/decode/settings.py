"""What an image shall be once it is decoded: one set of settings for all."""
from typing import Any, NamedTuple, Optional, Sequence, Tuple, Union

import torch

IMAGE_DTYPES = ('uint8', 'uint16', 'float32')
MAX_CHANNELS = 64

ValueRange = Union[None, str, Sequence[Any]]


class ImageSettings(NamedTuple):
    """What an image shall be once it is decoded.

    Nothing is lost by decoding unless one of these settings says so: an image
    that does not fit is refused by its name, with the setting that takes it.

    Args:
        channels (int, optional): Number C of channels, from 1 to 64; None
            takes as many as the file has. Defaults to 3.
        dtype (str, optional): 'uint8', 'uint16' or 'float32', which holds the
            values as they are in the file; None keeps the file's type.
            Defaults to 'uint8'.
        value_range (Sequence | str, optional): ``(low, high)``, values that
            are mapped to the ends of the type's range (0 to 255, 0 to 65535,
            0. to 1.); what lies beyond is clipped. Each may be a number or C
            numbers. 'per_image' takes each image's own range. Defaults to
            None, values as they are.
        bands (Sequence[int], optional): The C channels that are taken, by
            their number in the file, from 0. Defaults to None, all.
        fill (float | str, optional): What stands in for missing pixels (NaN,
            the file's nodata value or mask, DICOM's padding), in the file's
            units; 'mean' is that of the image's other pixels in the channel.
            Defaults to None: images with missing pixels are refused.
        window (Sequence[float] | str, optional): ``(centre, width)`` of the
            window that DICOM values are seen through; 'file' takes each
            file's own. Defaults to None, values as they are.
        pages (str, optional): What the pages of a TIFF file, or the frames of
            a DICOM file, are: the 'channels' of one image, or images of which
            the 'first' is taken. Defaults to None: files of several pages are
            refused unless they say that these are channels.
    """

    channels: Optional[int] = 3
    dtype: Optional[str] = 'uint8'
    value_range: ValueRange = None
    bands: Optional[Sequence[int]] = None
    fill: Union[None, float, str] = None
    window: Union[None, str, Sequence[float]] = None
    pages: Optional[str] = None

    @property
    def is_bgr(self) -> bool:
        """Whether images are in BGR, the framework's order of colours."""
        return self.channels == 3 and self.dtype == 'uint8'

    @property
    def is_plain(self) -> bool:
        """Whether these are ordinary colour images, with nothing asked."""
        return self is RGB or self == RGB


RGB = ImageSettings()


def make_settings(**given: Any) -> ImageSettings:
    """Check settings, and bring them to tuples.

    Args:
        **given: Those of :class:`ImageSettings`.

    Raises:
        ValueError: If one is none of what is allowed, or two contradict.
    """
    settings = ImageSettings(**given)
    channels, bands = settings.channels, settings.bands
    if channels is not None and not (_is_whole(channels)
                                     and 1 <= channels <= MAX_CHANNELS):
        raise ValueError(f'channels must be a whole number from 1 to '
                         f'{MAX_CHANNELS}, but got {channels!r}')
    _check_word('dtype', settings.dtype, IMAGE_DTYPES)
    if settings.dtype == 'uint16' and not hasattr(torch, 'uint16'):
        raise ValueError(f"dtype='uint16' needs torch 2.3 or newer, but "
                         f"{torch.__version__} is installed; set "
                         "dtype='float32', which holds the same values")
    _check_word('pages', settings.pages, ('channels', 'first'))
    if bands is not None:
        bands = tuple(bands)
        if not bands or not all(_is_whole(b) and b >= 0 for b in bands):
            raise ValueError('bands must be numbers of channels, from 0, but '
                             f'got {bands!r}')
        if channels is not None and len(bands) != channels:
            raise ValueError(f'bands={bands} are {len(bands)}, but '
                             f'channels={channels}; both must agree')
    if settings.fill is not None and settings.fill != 'mean' and not (
            _is_number(settings.fill)):
        raise ValueError("fill must be a number or 'mean', but got "
                         f'{settings.fill!r}')
    window = _check_window(settings.window)
    value_range = _check_range(settings.value_range, channels)
    if window is not None and value_range is not None:
        raise ValueError('window and value_range both say which values are '
                         'seen; give one of them')
    settings = settings._replace(
        bands=bands, window=window, value_range=value_range)
    return RGB if settings == RGB else settings


def _check_window(window: Any) -> Union[None, str, Tuple[float, float]]:
    if window is None or window == 'file':
        return window
    if (isinstance(window, str) or len(window) != 2
            or not all(map(_is_number, window)) or not window[1] > 0):
        raise ValueError("window must be (centre, width) or 'file', but got "
                         f'{window!r}')
    return window[0], window[1]


def _check_range(value_range: Any, channels: Optional[int]) -> ValueRange:
    if value_range is None or value_range == 'per_image':
        return value_range
    if isinstance(value_range, str) or len(value_range) != 2:
        raise ValueError("value_range must be (low, high) or 'per_image', but "
                         f'got {value_range!r}')
    ends = [(end, ) if _is_number(end) else tuple(end) for end in value_range]
    lengths = {len(end) for end in ends} - {1}
    if len(lengths) > 1 or (channels and lengths - {channels}):
        raise ValueError('each end of value_range must be one number, or one '
                         f'for each of {channels} channels, but got '
                         f'{value_range!r}')
    count = max(map(len, ends))
    lows, highs = (end * count if len(end) == 1 else end for end in ends)
    if not all(_is_number(low) and _is_number(high) and low < high
               for low, high in zip(lows, highs)):
        raise ValueError('value_range must be two finite numbers, the lower '
                         f'one first, but got {value_range!r}')
    return lows, highs


def _check_word(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}, but '
                         f'got {value!r}')


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) < float('inf'))
