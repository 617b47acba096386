"""Decoding image files of all sorts, without loss."""
from typing import Optional

import numpy as np

from .fitting import fit
from .formats import UndecodableImage, UnfitImage, is_plain, read_image
from .formats.plain import decode_plain, has_alpha
from .formats.sniffing import is_animated
from .image_settings import RGB, ImageSettings
from .saying import has_said, say_once

__all__ = ['UndecodableImage', 'UnfitImage', 'decode_image',
           'say_left_out']


def decode_image(data: bytes,
                 shrink_to: Optional[int] = None,
                 settings: ImageSettings = RGB,
                 name: str = 'an image') -> np.ndarray:
    """Decode an image, upright, without loss of what it holds.

    By default to BGR of 8 bits: grey and palette images become colour, and
    alpha is left out, which is said once. EXIF orientations are applied.

    Args:
        data (bytes): The file.
        shrink_to (int, optional): The caller needs no more than this on the
            shorter side, in pixels: JPEG files are then decoded at 1/2, 1/4
            or 1/8 where that leaves enough. Defaults to None, full size.
        settings (ImageSettings): What the image shall be. Defaults to colour
            of 8 bits.
        name (str): The file's name, for errors.

    Returns:
        np.ndarray: (H, W, C), not always contiguous. Three channels of uint8
        are in BGR; all else keeps the file's order.

    Raises:
        UndecodableImage: If it cannot be decoded, or is too large.
        UnfitImage: If it would lose something; names the file and the setting
            that takes it.
        MissingLibrary: If an optional library is needed; names the file.
    """
    if data and settings.is_plain and is_plain(data, name):
        try:
            image, alpha = decode_plain(data, shrink_to)
        except UndecodableImage:
            raise
        # Decoders raise all sorts of errors on broken files.
        except Exception as error:
            raise UndecodableImage(
                f'{type(error).__name__}: {error}') from error
        if alpha:
            _say_alpha(name)
        _say_frames(data, name)
        return image
    raw = read_image(data, name, settings, shrink_to)
    image = fit(raw, name, settings)
    if raw.alpha and settings.bands is None and (
            image.shape[2] < raw.pixels.shape[2]):
        _say_alpha(name)
    _say_frames(data, name)
    return image[..., ::-1] if settings.is_bgr else image


def say_left_out(data: bytes, name: str) -> None:
    """Say once what another decoder than ours leaves out of a plain image.

    Args:
        data (bytes): The file.
        name (str): Its name.
    """
    if not has_said('alpha') and has_alpha(data):
        _say_alpha(name)
    _say_frames(data, name)


def _say_alpha(name: str) -> None:
    say_once(
        'alpha', f'{name} has an alpha channel, which is left out, as that of '
        'further images; one channel more (channels=4 for colour) keeps it.')


def _say_frames(data: bytes, name: str) -> None:
    if is_animated(data):
        say_once(
            'frames', f'{name} is an animation, of which the first frame is '
            'taken, as of further ones.')
