"""Data preprocessors: any number of channels and any dtype, and two views."""
from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.utils import (ClsDataPreprocessor,
                                     SelfSupDataPreprocessor)
from mmpretrain.registry import MODELS
from torch import Tensor

from ..datasets.decode import IMAGE_DTYPES, MAX_CHANNELS
from ..datasets.samplers import mix_seeds
from ..datasets.transforms import (check_canvas, check_fraction, check_numbers,
                                   check_range)
from ..image_size import ImageSize
from . import augmentation
from .augmentation import (BLEND, CHANNEL_STEPS, COLOUR_STEPS, HUE, ViewParams,
                           blend, blur, plan_augmentation, rotate_hue,
                           steps_needed)

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

    def forward(self, data: dict, training: bool = False) -> dict:
        """Check and normalise images.

        Args:
            data (dict): ``inputs``, (N, C, H, W), or a list of views, and
                ``data_samples``.
            training (bool): See the base class. Defaults to False.

        Returns:
            dict: ``inputs`` in float32, normalised, and ``data_samples``.
        """
        self.check_images(data['inputs'], or_float=True)
        return super().forward(data, training)  # type: ignore[misc]


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


@MODELS.register_module()
class TwoViewDataPreprocessor(ChannelDataPreprocessor):
    """Crop two views from each canvas, augment the target view, normalise.

    The batched equivalent of ``PixelShift`` with mmpretrain's ``ColorJitter``,
    ``RandomGrayscale`` and ``GaussianBlur``, in float32 also under autocast.
    Each image has its own random parameters. In training it returns ``[online,
    target]`` for a batch of canvases; otherwise it only normalises.

    Images may have any number of channels. If they are not colour images, each
    channel has its own brightness and contrast (``x = low + (x - low) * b``
    and ``x = mean + (x - mean) * c``, where low is the channel's black and
    mean that of the view) instead of the colour jitter. There is no
    saturation, hue and grey, and values are not clipped.

    Args:
        size (int | Sequence[int]): Side of both windows in pixels, or
            (height, width).
        max_shift (int): Bound p of the shift in pixels, exclusive; 0 disables
            the shift. Defaults to 32.
        canvas_size (int | Sequence[int], optional): Size of the canvases in
            pixels, checked when the model is built. Defaults to None, checked
            at each batch.
        jitter (Sequence[float]): Strengths of the jitter of brightness,
            contrast, saturation and hue, the last at most 0.5 turns. Defaults
            to (0.4, 0.4, 0.4, 0.1).
        jitter_prob (float): Probability of colour jitter. Defaults to 0.8.
        grey_prob (float): Probability of conversion to grey. Defaults to 0.2.
        blur_sigma (Sequence[float]): Range of the Gaussian blur's standard
            deviation in pixels. Defaults to (0.1, 2.0).
        blur_prob (float): Probability of a blur. Defaults to 0.5.
        target_view (bool): Whether there is a target view; MAE needs none.
            Defaults to True.
        online_colour (bool): Whether to apply colour jitter, grey and blur to
            the online view, too, with its own random parameters. Defaults to
            False, as in the released code.
        colour (bool, optional): Whether the channels are red, green and blue.
            Defaults to whether there are three.
        mean (Sequence[float]): Mean of each channel, in the units of the
            images, 0 to 255 for uint8. Must be given.
        std (Sequence[float]): Standard deviation of each channel, in the same
            units. Must be given.
        **kwargs: Other arguments of ``ChannelDataPreprocessor``, such as
            ``to_rgb``, ``dtype`` and ``value_range``, and of
            ``SelfSupDataPreprocessor``.

    Raises:
        ValueError: If an argument is out of range, the canvas is smaller than
            ``size + max_shift``, or images are of other channels or type.
    """

    def __init__(self,
                 size: ImageSize,
                 max_shift: int = 32,
                 canvas_size: ImageSize | None = None,
                 jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
                 jitter_prob: float = 0.8,
                 grey_prob: float = 0.2,
                 blur_sigma: Sequence[float] = (0.1, 2.0),
                 blur_prob: float = 0.5,
                 target_view: bool = True,
                 online_colour: bool = False,
                 colour: bool | None = None,
                 mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None,
                 **kwargs: Any) -> None:
        super().__init__(
            mean=mean, std=std, **dict(dict(non_blocking=True), **kwargs))
        if colour and self.channels != 3:
            raise ValueError(
                'colour=True needs red, green and blue channels, but mean has '
                f'{self.channels} number(s); remove colour')
        self.size = check_canvas(canvas_size, size, max_shift)
        self.max_shift = max_shift
        self.jitter = check_numbers('jitter', jitter, 4)
        if self.jitter[3] > 0.5:
            raise ValueError('the hue, the last number of jitter, must be at '
                             f'most 0.5, half a turn, but got {jitter!r}')
        self.jitter_prob = check_fraction('jitter_prob', jitter_prob)
        self.grey_prob = check_fraction('grey_prob', grey_prob)
        self.blur_sigma = check_range('blur_sigma', blur_sigma)
        self.blur_prob = check_fraction('blur_prob', blur_prob)
        self.target_view = target_view
        self.online_colour = online_colour
        self.colour = self.channels == 3 if colour is None else colour
        # Odd, with 4 sigma on both sides.
        self._kernel = 2 * round(4 * self.blur_sigma[1]) + 1

    def forward(self, data: dict, training: bool = False) -> dict:
        """Create both views, or only normalise.

        Args:
            data (dict): ``inputs``, canvases, (N, C, H, W), and
                ``data_samples``.
            training (bool): Whether to create views. Defaults to False.

        Returns:
            dict: ``inputs``, ``[online, target]``, float (N, C, H, W) each
            (``[online]`` with ``target_view=False``), and ``data_samples``.
            Without ``training``, see ``SelfSupDataPreprocessor``.
        """
        if not training:
            return super().forward(data, training)
        seeds = self._seeds(data.get('data_samples'))
        data = self.cast_data(data)
        canvas = data['inputs']
        self._check_canvas(canvas)
        if self._channel_conversion:
            canvas = canvas.flip(1)
        # Optimizer wrappers autocast their data preprocessor too; the blur, a
        # convolution, would round to 1/256.
        with torch.autocast(canvas.device.type, enabled=False):
            if self.target_view:
                params = self.draw_params(len(canvas), seeds)
                views = self.make_views(canvas, params)
            else:
                views = [self._online_view(canvas)]
            views = [self._normalise(view) for view in views]
        return dict(inputs=views, data_samples=data.get('data_samples'))

    def _check_canvas(self, canvas: Tensor) -> None:
        if not isinstance(canvas, Tensor) or canvas.dim() != 4:
            raise ValueError(
                'TwoViewDataPreprocessor expects one canvas per image, (N, C, '
                'H, W), but the data pipeline returns a '
                f'{type(canvas).__name__} of {len(canvas)}; remove PixelShift '
                'and MultiView, or use SelfSupDataPreprocessor')
        self.check_images(canvas)

    def _scale(self, images: Tensor) -> Tensor:
        """Scale the value range to [0, 1]."""
        if self.is_byte_range:
            return images / 255
        return (images.float() - self.low) / self.width

    def _normalise(self, images: Tensor) -> Tensor:
        """Normalise scaled images, in place."""
        width = 255 if self.is_byte_range else self.width
        low = 0 if self.is_byte_range else self.low
        return torch.addcmul((low - self.mean) / self.std, images,
                             width / self.std, out=images)

    @staticmethod
    def _seeds(data_samples: Any) -> list[int] | None:
        if not data_samples or 'view_seed' not in data_samples[0]:
            return None
        return [sample.view_seed for sample in data_samples]

    def draw_params(self,
                    count: int,
                    seeds: Sequence[int] | None = None) -> ViewParams:
        """Draw the random parameters of a batch.

        Args:
            count (int): Number N of images.
            seeds (Sequence[int], optional): A seed for each image. Defaults
                to None, torch's global generator, which ``StepSeedHook`` seeds
                for step and rank.

        Returns:
            ViewParams: The parameters, on the CPU.
        """
        generator = None
        if seeds is not None:
            generator = torch.Generator().manual_seed(mix_seeds(*seeds))
        params = self._draw(count, generator)
        if self.online_colour:
            params = params._replace(online=self._draw(count, generator))
        return params

    def _draw(self, count: int,
              generator: torch.Generator | None) -> ViewParams:
        """Draw the random parameters of a view of a batch."""
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        shift = torch.randint(
            max(self.max_shift, 1), (count, 2), generator=generator)
        *scales, hue = self.jitter
        factors = [uniform(max(0, 1 - s), 1 + s) for s in scales]
        factors.append(uniform(-hue, hue))
        if not self.colour:
            factors = [torch.stack([uniform(max(0, 1 - s), 1 + s)
                                    for _ in range(self.channels)], dim=1)
                       for s in scales[:2]]
        return ViewParams(
            shift=shift,
            jitter=uniform(0, 1) < self.jitter_prob,
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
            factors=torch.stack(factors, dim=1),
            grey=uniform(0, 1) < self.grey_prob,
            blur=uniform(0, 1) < self.blur_prob,
            sigma=uniform(*self.blur_sigma))

    def make_views(self, canvas: Tensor, params: ViewParams) -> list[Tensor]:
        """Crop both windows and augment the target view, or both views.

        Args:
            canvas (Tensor): Canvases, (N, C, H, W), colours as RGB.
            params (ViewParams): Random parameters of each image.

        Returns:
            list[Tensor]: Online and target view, float, (N, C, H, W); black
            is 0, white is 1.
        """
        self._check_size(canvas)
        plan = plan_augmentation(params, self.colour)
        online_plan = None if params.online is None else plan_augmentation(
            params.online, self.colour)
        if augmentation.is_batched(canvas):
            target = self._scale(self._cut(canvas, params.shift))
            view = self._online_view(canvas)
            if online_plan is not None:
                view = self.augment(view, self._send(online_plan, canvas))
            return [view, self.augment(target, self._send(plan, canvas))]
        online, target = torch.empty(
            2, *canvas.shape[:2], *self.size)
        for n, shift in enumerate(params.shift.tolist()):
            image, own = canvas[n:n + 1], plan[n:n + 1]
            view = self._scale(self._window(image))
            if online_plan is not None:
                changes = online_plan[n:n + 1]
                view = self.augment(view, changes, steps_needed(changes))
            online[n] = view
            target[n] = self.augment(
                self._scale(self._window(image, *shift)), own,
                steps_needed(own))
        return [online, target]

    def _online_view(self, canvas: Tensor) -> Tensor:
        """Crop the online window at the top left corner."""
        self._check_size(canvas)
        return self._scale(self._window(canvas))

    def _check_size(self, canvas: Tensor) -> None:
        check_canvas(canvas.shape[2:], self.size, self.max_shift)

    def _window(self, canvas: Tensor, y: int = 0, x: int = 0) -> Tensor:
        height, width = self.size
        return canvas[:, :, y:y + height, x:x + width]

    def _cut(self, canvas: Tensor, shift: Tensor) -> Tensor:
        """Crop the target window of each image."""
        height, width = self.size
        windows = canvas.unfold(2, height, 1).unfold(3, width, 1)
        y, x = self._send(shift, canvas).unbind(1)
        image = torch.arange(len(canvas), device=canvas.device)
        return windows[image, :, y, x]

    def augment(self, images: Tensor, plan: Tensor,
                needed: tuple[bool, ...] | None = None) -> Tensor:
        """Jitter, convert to grey and blur each image.

        Args:
            images (Tensor): Target views, (N, C, H, W); black is 0, white 1.
            plan (Tensor): The plan of :func:`plan_augmentation`, on the
                images' device.
            needed (tuple[bool, ...], optional): Steps that all images need;
                the others are skipped. Defaults to None: the plan selects
                steps for each image, in operations of fixed shapes.

        Returns:
            Tensor: (N, C, H, W).
        """
        for number, kind in enumerate(
                COLOUR_STEPS if self.colour else CHANNEL_STEPS):
            if needed is not None and not needed[number]:
                continue
            chosen, shares, factors = plan[:, number].split(
                (1, 2, plan.shape[2] - 3), dim=1)
            if kind == BLEND:
                made = blend(images, shares, factors, self.colour)
            elif kind == HUE:
                made = rotate_hue(images, factors)
            else:
                made = blur(images, factors[:, :1], self._kernel)
            if self.colour:
                made = made.clamp_(0, 1)
            # A blend by 1 is exact, and so is the clip of 8-bit images.
            exact = kind == BLEND and self.is_byte_range
            images = made if needed is not None or exact else torch.where(
                chosen[..., None, None] > 0, made, images)
        return images

    @staticmethod
    def _send(values: Tensor, like: Tensor) -> Tensor:
        """Copy random parameters to the device asynchronously."""
        if like.device.type == 'cuda':
            values = values.pin_memory()
        return values.to(like.device, non_blocking=True)
