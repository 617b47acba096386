"""Loading that outlives broken files."""
import logging
from abc import abstractmethod
from typing import Optional

from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS


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
        """
        path = results['img_path']
        try:
            loaded = self.load(results)
            self._failures = 0
            return loaded
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
class LoadImageOrSkip(SkipBroken):
    """mmcv's ``LoadImageFromFile``, skipping what cannot be decoded.

    Args:
        max_failures (int): Number of files in a row that cannot be decoded
            after which loading fails. Defaults to 100.
        **kwargs: Arguments of ``LoadImageFromFile``.
    """

    def __init__(self, max_failures: int = 100, **kwargs) -> None:
        self.max_failures = max_failures
        self._loader = LoadImageFromFile(**kwargs)

    def load(self, results: dict) -> dict:
        """Load the image at ``img_path``."""
        return self._loader.transform(results)
