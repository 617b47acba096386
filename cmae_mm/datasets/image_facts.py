"""What one image is: size, type, and the moments of its channels."""
import hashlib
from typing import List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from .decode import (
    ImageSettings,
    RawImage,
    UndecodableImage,
    UnfitImage,
    change_type,
    choose_channels,
    fill_missing,
    find_missing,
    is_dicom,
    is_grey,
    read_image,
)

# Differences of neighbours on a grid of 16 x 16 make the fingerprint.
_GRID = 16
_ROWS = 256
# Of more images than these only identical files are found.
_MOST_COMPARED = 20_000


class ImageFacts(NamedTuple):
    """What one image is.

    Args:
        path (str): The image.
        fault (str): 'broken' or 'unfit', and '' for one that was read; all
            that follows is then of no meaning but ``reason``.
        reason (str): Why it could not be read, or does not fit.
        size (Tuple[int, int]): Height and width in pixels.
        kind (str): Type of the file's values.
        dtype (str): Type of the image as it was measured.
        alpha (bool): Whether the last channel is opacity.
        grey (bool): Whether it has three channels that are all the same.
        missing (bool): Whether it has missing pixels; these are left out.
        dicom (bool): Whether it is a DICOM file, which a window is for.
        mean (np.ndarray): Mean of each channel, (C, ).
        var (np.ndarray): Variance of each channel, (C, ).
        low (np.ndarray): Least value of each channel, (C, ).
        high (np.ndarray): Greatest value of each channel, (C, ).
        pixels (np.ndarray): Some of the pixels, float32, (P, C).
        digest (bytes): Of the file; the same for identical files.
        fingerprint (np.ndarray | None): 256 bits, nearly the same for images
            that look the same; None for images without any structure.
    """

    path: str
    fault: str = ''
    reason: str = ''
    size: Tuple[int, int] = (0, 0)
    kind: str = ''
    dtype: str = ''
    alpha: bool = False
    grey: bool = False
    missing: bool = False
    dicom: bool = False
    mean: np.ndarray = np.zeros(0)
    var: np.ndarray = np.zeros(0)
    low: np.ndarray = np.zeros(0)
    high: np.ndarray = np.zeros(0)
    pixels: np.ndarray = np.zeros((0, 0))
    digest: bytes = b''
    fingerprint: Optional[np.ndarray] = None


def look_at(data: bytes, path: str, settings: ImageSettings,
            kept: int = 0) -> ImageFacts:
    """Decode an image and measure it.

    Args:
        data (bytes): The file.
        path (str): Its name.
        settings (ImageSettings): How to read it; ``channels`` is left to
            whoever compares the images, and missing pixels are left out.
        kept (int): How many of the pixels to give. Defaults to 0.

    Returns:
        ImageFacts: What it is.

    Raises:
        MissingLibrary: If an optional library is needed; names the file.
    """
    try:
        raw = read_image(data, path, settings)
        kind = raw.pixels.dtype.name
        raw = choose_channels(raw, path, settings._replace(channels=None))
        missing = find_missing(raw)
        if missing is not None:
            raw = raw._replace(
                pixels=fill_missing(raw.pixels, missing, 'mean'))
        values = change_type(raw, path, settings)
    except UndecodableImage as error:
        return ImageFacts(path, 'broken', ' '.join(str(error).split()))
    except UnfitImage as error:
        return ImageFacts(path, 'unfit', str(error))
    valid = None if missing is None else ~missing
    mean, var, low, high = measure(values, valid)
    return ImageFacts(
        path,
        size=(values.shape[0], values.shape[1]),
        kind=kind,
        dtype=values.dtype.name,
        alpha=raw.alpha,
        grey=values.shape[2] == 3 and is_grey(values),
        missing=missing is not None,
        dicom=is_dicom(data, path),
        mean=mean,
        var=var,
        low=low,
        high=high,
        pixels=_some_pixels(values, valid, kept),
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        fingerprint=_fingerprint(raw, values))


def measure(values: np.ndarray,
            valid: Optional[np.ndarray] = None) -> Tuple[np.ndarray, ...]:
    """Measure the channels of an image, in float64 and little memory.

    Args:
        values (np.ndarray): (H, W, C).
        valid (np.ndarray, optional): Which values count, of the same shape.
            Defaults to all. A channel without any has zeros.

    Returns:
        Tuple[np.ndarray, ...]: Mean, variance, least and greatest value of
        each channel, (C, ) each.
    """
    channels = values.shape[2]
    # Sums of squares around a value of the image lose nothing.
    shift = values[0, 0].astype(np.float64)
    count, total, squares = (np.zeros(channels) for _ in range(3))
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for start in range(0, values.shape[0], _ROWS):
        part = values[start:start + _ROWS].astype(np.float64)
        use = (np.ones(part.shape, bool) if valid is None
               else valid[start:start + _ROWS])
        low = np.minimum(low, part.min((0, 1), where=use, initial=np.inf))
        high = np.maximum(high, part.max((0, 1), where=use, initial=-np.inf))
        part -= shift
        count += use.sum((0, 1))
        total += part.sum((0, 1), where=use)
        squares += (part * part).sum((0, 1), where=use)
    some = count > 0
    count = count.clip(1)
    mean = total / count
    var = (squares / count - mean**2).clip(0)
    return (np.where(some, mean + shift, 0), np.where(some, var, 0),
            np.where(some, low, 0), np.where(some, high, 0))


def _some_pixels(values: np.ndarray, valid: Optional[np.ndarray],
                 kept: int) -> np.ndarray:
    flat: np.ndarray = values.reshape(-1, values.shape[2])
    if valid is not None:
        flat = flat[valid.reshape(flat.shape).all(1)]
    step = max(len(flat) // max(kept, 1), 1)
    return flat[::step][:kept].astype(np.float32)


def _fingerprint(raw: RawImage, values: np.ndarray) -> Optional[np.ndarray]:
    channels = values.shape[2] - raw.alpha
    grey = values[..., :channels].mean(axis=2, dtype=np.float32)
    small = cv2.resize(
        grey, (_GRID + 1, _GRID), interpolation=cv2.INTER_AREA)
    spread = float(grey.max() - grey.min())
    steps = np.diff(small, axis=1)
    # Of smooth images the least noise would decide.
    if np.abs(steps).mean() <= 0.002 * spread or spread == 0:
        return None
    return np.packbits(steps > 0)


def near_pairs(facts: List[ImageFacts], most: int,
               distance: int = 10) -> List[Tuple[int, int]]:
    """Find images that are, or look, the same.

    Args:
        facts (List[ImageFacts]): Images that were read.
        most (int): How many pairs to give at most.
        distance (int): How many of the 256 bits of two fingerprints may
            differ. Defaults to 10.

    Returns:
        List[Tuple[int, int]]: Pairs of numbers, each image with an earlier
        one that it repeats, at most once each.
    """
    pairs: List[Tuple[int, int]] = []
    first: dict = {}
    prints = np.array([
        np.zeros(_GRID * _GRID // 8, np.uint8)
        if f.fingerprint is None else f.fingerprint for f in facts
    ])
    usable = np.array([f.fingerprint is not None for f in facts])
    for number, fact in enumerate(facts):
        if len(pairs) >= most:
            break
        if fact.digest in first:
            pairs.append((first[fact.digest], number))
            continue
        first[fact.digest] = number
        if not usable[number] or not number or len(facts) > _MOST_COMPARED:
            continue
        earlier = np.flatnonzero(usable[:number])
        differing = np.unpackbits(
            prints[earlier] ^ prints[number], axis=1).sum(1)
        near = earlier[differing <= distance]
        if len(near):
            pairs.append((int(near[0]), number))
    return pairs
