"""Loading images of any kind, and loading that outlives broken files."""
import logging
from abc import abstractmethod
from typing import Any, Optional, Sequence

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS

from ...dependencies import MissingLibrary
from ..decode import (
    UndecodableImage,
    UnfitImage,
    decode_image,
    is_plain,
    make_settings,
    say_left_out,
)


class BrokenImagesError(RuntimeError):
    """Image after image that cannot be decoded; the message names one."""


class SkipBroken(BaseTransform):
    """A transform that skips what it cannot load, with a warning.

    The warning names the file. The data set then takes another sample in its
    place (mmengine's ``BaseDataset`` does so where a pipeline gives None).

    Args:
        max_failures (int): Number of files in a row that cannot be loaded
            after which loading fails. Defaults to 100.
    """

    max_failures: int = 100
    _failures: int = 0

    @abstractmethod
    def load(self, results: dict) -> dict:
        """Load the image at ``img_path``, or raise any error."""

    def transform(self, results: dict) -> Optional[dict]:
        """Load the image at ``img_path``.

        Args:
            results (dict): The sample, with ``img_path``.

        Returns:
            dict | None: The sample with ``img``, or None for a skipped file.

        Raises:
            BrokenImagesError: If ``max_failures`` files in a row failed.
            UnfitImage: If the image is whole, but does not fit the settings.
            MissingLibrary: If an optional library is needed for it.
        """
        path = results['img_path']
        try:
            loaded = self.load(results)
            self._failures = 0
            return loaded
        except (UnfitImage, MissingLibrary):
            raise
        # Decoders raise all sorts of errors on broken files.
        except Exception as error:
            self._failures += 1
            text = ' '.join(str(error).split())
            reason = f'{type(error).__name__}: {text}'
        if self._failures >= self.max_failures:
            raise BrokenImagesError(
                f'{self._failures} images in a row could not be decoded, the '
                f'last one {path} ({reason}); check the data folder')
        # Loggers of ranks other than 0 print errors alone.
        print_log(
            f'Skipped {path}, which cannot be decoded ({reason}); another '
            'image takes its place.',
            logger='current',
            level=logging.WARNING if get_rank() == 0 else logging.ERROR)
        return None


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` for images of any kind, without loss.

    Ordinary images, of 8 bits in colour or grey, are those of
    ``LoadImageFromFile``. An image that would lose something is refused by
    its name, with the setting that takes it.

    **Required Keys:**

    - img_path

    **Added Keys:**

    - img (np.ndarray): (H, W, C), of the type ``dtype``. Three channels of
      uint8 are in BGR; all others are in the file's order.
    - img_shape, ori_shape

    Args:
        channels (int): Number C of channels, from 1 to 64. Defaults to 3.
        dtype (str): 'uint8', 'uint16' or 'float32'. Defaults to 'uint8'.
        value_range (Sequence | str, optional): This and the next ones, see
            :class:`~cmae_mm.datasets.decode.ImageSettings`.
        bands (Sequence[int], optional): Channels of the file that are taken.
        fill (float | str, optional): What stands for missing pixels.
        window (Sequence[float] | str, optional): Window of DICOM values.
        pages (str, optional): What the pages of a file are.
        **kwargs: Arguments of ``LoadImageFromFile``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 channels: int = 3,
                 dtype: str = 'uint8',
                 value_range: Any = None,
                 bands: Optional[Sequence[int]] = None,
                 fill: Any = None,
                 window: Any = None,
                 pages: Optional[str] = None,
                 **kwargs) -> None:
        super().__init__(**kwargs)
        if self.file_client_args is not None:
            raise ValueError('file_client_args is no argument of LoadImage; '
                             'give backend_args')
        self.settings = make_settings(
            channels=channels, dtype=dtype, value_range=value_range,
            bands=bands, fill=fill, window=window, pages=pages)

    def transform(self, results: dict) -> Optional[dict]:
        """Load the image at ``img_path``.

        Args:
            results (dict): The sample, with ``img_path``.

        Returns:
            dict | None: The sample with ``img``; None for a broken file where
            ``ignore_empty`` is set.

        Raises:
            UndecodableImage: If it cannot be decoded; names the file.
            UnfitImage: If it would lose something.
            MissingLibrary: If an optional library is needed for it.
        """
        try:
            return self.load(results)
        except (UnfitImage, MissingLibrary):
            raise
        except Exception as error:
            if self.ignore_empty:
                return None
            if isinstance(error, OSError):
                raise
            raise UndecodableImage(
                f'{results["img_path"]} cannot be decoded '
                f'({type(error).__name__}: {error})') from error

    def load(self, results: dict) -> dict:
        """Load the image at ``img_path``, or raise any error."""
        path = results['img_path']
        data = fileio.get(path, backend_args=self.backend_args)
        image = self.decode(data, path)
        results.update(
            img=image.astype(np.float32) if self.to_float32 else image,
            img_shape=image.shape[:2],
            ori_shape=image.shape[:2])
        return results

    def decode(self, data: bytes, path: str) -> np.ndarray:
        """Decode an image.

        Args:
            data (bytes): The file.
            path (str): Its name, for errors.

        Returns:
            np.ndarray: (H, W, C), see the class.

        Raises:
            ValueError: If it cannot be decoded, or would lose something.
        """
        if data and self.settings.is_plain and is_plain(data, path):
            # As everywhere in the framework, to the last bit.
            image = mmcv.imfrombytes(
                data, flag=self.color_type, backend=self.imdecode_backend)
            if image is not None:
                say_left_out(data, path)
                return image
        return np.ascontiguousarray(
            decode_image(data, None, self.settings, path))


@TRANSFORMS.register_module()
class LoadImageOrSkip(SkipBroken):
    """``LoadImage`` that skips what cannot be decoded.

    Args:
        max_failures (int): Number of files in a row that cannot be decoded
            after which loading fails. Defaults to 100.
        **kwargs: Arguments of ``LoadImage``.
    """

    def __init__(self, max_failures: int = 100, **kwargs) -> None:
        self.max_failures = max_failures
        self._loader = LoadImage(**kwargs)

    def load(self, results: dict) -> dict:
        """Load the image at ``img_path``."""
        return self._loader.load(results)
