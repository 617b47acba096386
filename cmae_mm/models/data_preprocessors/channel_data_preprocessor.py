"""Data preprocessors for any number of channels and any dtype."""
from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.utils import (ClsDataPreprocessor,
                                     SelfSupDataPreprocessor)
from mmpretrain.registry import MODELS
from torch import Tensor

from ...datasets.decode import IMAGE_DTYPES, MAX_CHANNELS

Values = float | Sequence[float]
# Default values of black and white.
_RANGES = dict(uint8=(0., 255.), uint16=(0., 65535.))


def _count_channels(mean: Any, std: Any) -> int:
    """Check mean and standard deviation; return the number of channels."""
    for name, value in (('mean', mean), ('std', std)):
        if value is None or not 1 <= len(value) <= MAX_CHANNELS:
            raise ValueError(
                f'{name} must be a list of 1 to {MAX_CHANNELS} numbers, one '
                f'per channel, but got {value}')
    if len(mean) != len(std):
        raise ValueError(
            f'mean has {len(mean)} numbers and std {len(std)}; each must have '
            'one for each channel')
    if min(std) <= 0:
        raise ValueError(
            f'std must be above 0 in each channel, but got {list(std)}')
    return len(mean)


class ChannelChecks:
    """Mixin of data preprocessors that check channels and dtype of images.

    Attributes:
        channels (int): Number C of channels.
        dtype (str): Dtype of the images, 'uint8', 'uint16' or 'float32'.
    """

    channels: int
    dtype: str

    def set_channels(self, channels: int, dtype: str, to_rgb: bool) -> None:
        """Set channels and dtype.

        Args:
            channels (int): Number C of channels.
            dtype (str): Dtype of the images.
            to_rgb (bool): Whether BGR is converted to RGB.

        Raises:
            ValueError: If the dtype is unknown, or there is no BGR.
        """
        if dtype not in IMAGE_DTYPES:
            raise ValueError(
                f'dtype must be one of {", ".join(IMAGE_DTYPES)}, but got '
                f'{dtype!r}')
        if not hasattr(torch, dtype):
            raise ValueError(
                f'dtype={dtype!r} needs torch 2.3 or newer; use '
                "dtype='float32', here and in LoadCanvas")
        if to_rgb and (channels != 3 or dtype != 'uint8'):
            raise ValueError(
                'to_rgb=True needs 8-bit colour images of 3 channels, which '
                f'are loaded as BGR, but these have {channels} channel(s) in '
                f'{dtype}, in the order of the file; set to_rgb=False')
        self.channels = channels
        self.dtype = dtype

    def check_images(self, images: Any, or_float: bool = False) -> None:
        """Check a batch before it is normalised.

        Args:
            images (Any): Images, (N, C, H, W), or a list of images.
            or_float (bool): Whether float32 is allowed for integers too.
                Defaults to False.

        Raises:
            ValueError: If they have other channels or another dtype.
        """
        if not isinstance(images, Tensor):
            for one in images:
                self.check_images(one, or_float)
            return
        found = images.shape[-3] if images.dim() >= 3 else 0
        if found != self.channels:
            raise ValueError(
                f'{type(self).__name__} normalises images of {self.channels} '
                f'channel(s) (its mean has {self.channels} number(s)), but '
                f'got images of {found}; set mean and std, '
                'backbone.in_channels and the channels of the pipeline to the '
                'same number, or use image_stats')
        kinds = [self.dtype, 'float32'] if or_float else [self.dtype]
        if str(images.dtype).removeprefix('torch.') not in kinds:
            raise ValueError(
                f'{type(self).__name__} has dtype={self.dtype!r}, but got '
                f'images of {images.dtype}; load images with the dtype of '
                'mean and std, or use image_stats')


@MODELS.register_module()
class ChannelDataPreprocessor(ChannelChecks, SelfSupDataPreprocessor):
    """mmpretrain's ``SelfSupDataPreprocessor`` for any number of channels.

    Args:
        mean (Sequence[float]): Mean of each of the C channels, from 1 to 64,
            in the units of the images: 0 to 255 for uint8. Must be given.
        std (Sequence[float]): Standard deviation of each channel, likewise.
        dtype (str): Dtype of the images: 'uint8', 'uint16' or 'float32'.
            Defaults to 'uint8'.
        value_range (tuple[float | Sequence[float], ...], optional): Values of
            black and of white, each one number or one for each channel.
            Brightness is relative to black, and pictures show this range.
            Augmented colours are clipped to it. Defaults to the range of uint8
            or uint16; must be given for float32.
        to_rgb (bool): Whether BGR is converted to RGB, for colour images of
            3 channels in uint8. All others have the channel order of the
            file. Defaults to False.
        **kwargs: Other arguments of ``SelfSupDataPreprocessor``.

    Attributes:
        low (torch.Tensor): Black, (C, 1, 1).
        width (torch.Tensor): White minus black, (C, 1, 1).
        is_byte_range (bool): Whether these are 0 and 255, of uint8.

    Raises:
        ValueError: If an argument is out of range; later, if images are of
            other channels or another type.
    """

    low: Tensor
    width: Tensor

    def __init__(self,
                 mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None,
                 dtype: str = 'uint8',
                 value_range: tuple[Values, Values] | None = None,
                 to_rgb: bool = False,
                 **kwargs: Any) -> None:
        channels = _count_channels(mean, std)
        super().__init__(to_rgb=to_rgb, **kwargs)
        self.set_channels(channels, dtype, self._channel_conversion)
        # mmengine's normalisation supports at most three channels.
        self._enable_normalize = True
        for name, value in (('mean', mean), ('std', std)):
            self.register_buffer(
                name, torch.tensor(value).view(-1, 1, 1), False)
        self.is_byte_range = dtype == 'uint8' and value_range is None
        low, high = self._read_range(value_range)
        self.register_buffer('low', low, False)
        self.register_buffer('width', high - low, False)

    def _read_range(self, value_range: tuple[Values, Values] | None
                    ) -> tuple[Tensor, Tensor]:
        value_range = value_range or _RANGES.get(self.dtype)
        if value_range is None:
            raise ValueError(
                'value_range must be given for images of float32, as (black, '
                'white), each one number or one for each channel; '
                '`cmae stats` measures it')
        try:
            low, high = (
                torch.tensor(end, dtype=torch.float32).expand(self.channels)
                for end in value_range)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                'value_range must be (black, white), each one number or '
                f'{self.channels}, one for each channel, but got '
                f'{value_range}') from error
        if not (low < high).all():
            raise ValueError(
                'value_range must begin with black, below white in each '
                f'channel, but got {value_range}')
        return low.clone().view(-1, 1, 1), high.clone().view(-1, 1, 1)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise images.

        Args:
            data (dict): ``inputs``, (N, C, H, W), or a list of views, and
                ``data_samples``.
            training (bool): Not used. Defaults to False.

        Returns:
            dict: ``inputs`` in float32, normalised, and ``data_samples``.
        """
        self.check_images(data['inputs'], or_float=True)
        return super().forward(data, training)


@MODELS.register_module()
class ChannelClsDataPreprocessor(ChannelChecks, ClsDataPreprocessor):
    """mmpretrain's ``ClsDataPreprocessor`` that checks channels and type.

    For classifiers of images with any number of channels, in 8 or 16 bits or
    float. Without the check, a mean of one number would silently apply to all
    channels.

    Args:
        mean (Sequence[float]): Mean of each of the C channels, from 1 to 64,
            in the units of the images. Must be given.
        std (Sequence[float]): Standard deviation of each channel, likewise.
        dtype (str): Dtype of the images: 'uint8', 'uint16' or 'float32'.
            Defaults to 'uint8'.
        to_rgb (bool): See :class:`ChannelDataPreprocessor`. Defaults to
            False.
        **kwargs: Other arguments of ``ClsDataPreprocessor``.

    Raises:
        ValueError: If an argument is out of range; later, if images are of
            other channels or another type.
    """

    def __init__(self,
                 mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None,
                 dtype: str = 'uint8',
                 to_rgb: bool = False,
                 **kwargs: Any) -> None:
        channels = _count_channels(mean, std)
        super().__init__(mean=mean, std=std, to_rgb=to_rgb, **kwargs)
        self.set_channels(channels, dtype, to_rgb)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise, and mix images and labels in training.

        See ``ClsDataPreprocessor.forward``.
        """
        self.check_images(data['inputs'], or_float=True)
        return super().forward(data, training)
