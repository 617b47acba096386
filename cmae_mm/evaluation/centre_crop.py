"""Decoding and centre crop of an image, shared by all evaluations."""
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..datasets.decode import (ImageSettings, RawImage, UndecodableImage,
                               arrange, decode_short, decode_windows, finish,
                               from_pillow, make_settings, resize_image)
from ..datasets.decode.image import Encoded
from ..datasets.names import encode_name
from ..datasets.source import open_record
from ..image_size import ImageSize, cover, covered_by, to_pair


class CentreCrop:
    """Resize an image and crop the centre.

    The image keeps its aspect ratio and is resized to the smallest size that
    covers the crop and a margin; for a square crop, its shorter side has a
    given length.

    Args:
        size (int | Sequence[int]): Side of the crop in pixels, or (H, W).
        images (Mapping[str, Any], optional): Arguments of ``LoadImage`` for
            decoding. Defaults to None, 8-bit colours.
        short_side (int, optional): Shorter side of crop and margin in pixels.
            Defaults to 256/224 of the crop's.

    Attributes:
        settings (ImageSettings): How images are decoded.
    """

    def __init__(self,
                 size: ImageSize,
                 images: Mapping[str, Any] | None = None,
                 short_side: int | None = None) -> None:
        self.settings: ImageSettings = make_settings(**(images or {}))
        self.size = to_pair(size, 'size')
        self.short_side = min(covered_by(size, short_side))

    def decode(self, data: Encoded, name: str, whole: bool = True,
               windows: bool = False) -> Any:
        """Decode an image file as in training.

        Args:
            data (bytes | Path): The file, or the path of a large one.
            name (str): For the error.
            whole (bool): Whether to keep the size of the file. If not, images
                of more than ``max_pixels`` are resized for the crop while they
                are decoded. Defaults to True.
            windows (bool): Whether images of more than ``max_pixels`` are
                opened to read windows of them. Defaults to False.

        Returns:
            np.ndarray | LargeImage: (H, W, C); three channels of uint8 are in
            BGR.

        Raises:
            ValueError: If it cannot be decoded, or would lose something.
        """
        name = encode_name(name)
        try:
            if windows:
                return decode_windows(data, self.settings, name)
            return decode_short(
                data, None if whole else max(
                    covered_by(self.size, self.short_side)),
                self.settings, name)
        except UndecodableImage as error:
            raise ValueError(f'{name} cannot be decoded ({error})') from error

    def load(self, read: Callable[[], Encoded], name: str) -> Tensor:
        """Read, decode and crop an image file, see :meth:`decode`."""
        return self(self.decode(read(), name, whole=False))

    def read(self, image: Any, whole: bool = True,
             windows: bool = False) -> Any:
        """Decode an image from a file, bytes, a PIL image or an array.

        Args:
            image (Any): See
                :meth:`~cmae_mm.apis.PretrainedEncoder.preprocess`.
            whole (bool): See :meth:`decode`.
            windows (bool): Likewise.

        Returns:
            np.ndarray | LargeImage: See :meth:`decode`.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If it is of another type.
            ValueError: If it cannot be decoded, or would lose something.
        """
        if isinstance(image, Image.Image):
            return self._convert(from_pillow, image)
        if isinstance(image, np.ndarray):
            return self._convert(lambda array, settings: RawImage(
                arrange(array, settings)), image)
        if hasattr(image, 'read'):
            image = image.read()
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self.decode(bytes(image), 'the image', whole, windows)
        if not isinstance(image, (str, os.PathLike)):
            raise TypeError(
                'expected one image (a file, its bytes, a PIL image or an '
                f'array (H, W, C)), but got {type(image).__name__}; stack the '
                'results of several images')
        name = os.fspath(image)
        try:
            data = open_record(dict(img_path=name))
        except (OSError, ValueError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise FileNotFoundError(
                f'the image file {name[:200]!r} cannot be read: {reason}'
            ) from error
        return self.decode(data, name, whole, windows)

    def _convert(self, reader: Any, image: Any) -> np.ndarray:
        try:
            raw = reader(image, self.settings)
            return finish(raw, 'the image', self.settings)
        except OSError as error:  # of a PIL image that was not loaded before
            raise ValueError(
                f'the image cannot be decoded ({error})') from error

    def __call__(self, image: np.ndarray) -> Tensor:
        """Resize and crop an image, (H, W, C), as :meth:`decode` returns it.

        Returns:
            Tensor: (C, H, W), of the image's type, colours as RGB.
        """
        image = resize_image(image, cover(
            covered_by(self.size, self.short_side), image.shape[:2]))
        (top, height), (left, width) = (
            (max(round((side - wanted) / 2), 0), wanted)
            for side, wanted in zip(image.shape[:2], self.size))
        crop = image[top:top + height, left:left + width]
        pixels = torch.from_numpy(
            np.ascontiguousarray(crop.transpose(2, 0, 1)))
        return pixels[[2, 1, 0]] if self.settings.is_bgr else pixels
