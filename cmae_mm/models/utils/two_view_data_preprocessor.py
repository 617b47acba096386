"""Both views of a whole batch, made on the model's device."""
from typing import List, NamedTuple, Optional, Sequence

import torch
from kornia.filters import gaussian_blur2d
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor

from ...datasets.seeding import mix
from ...datasets.transforms.pixel_shift import check_canvas
from .colour import NUM_MIXES, mix_with_grey_, plan_mixes, turn_hue


def _describe(inputs) -> str:
    if isinstance(inputs, Tensor):
        return f'a tensor of shape {tuple(inputs.shape)}'
    return f'a {type(inputs).__name__} of {len(inputs)}'


class ViewParams(NamedTuple):
    """Random parameters of N images, on the CPU.

    Attributes:
        shift (Tensor): Shift ``(r_y, r_x)`` of the target window in pixels,
            (N, 2).
        jitter (Tensor): Whether colours are jittered, bool, (N, ).
        order (Tensor): Order in which brightness, contrast, saturation and
            hue are changed, (N, 4).
        factors (Tensor): Factors of these four, (N, 4), hue in turns.
        grey (Tensor): Whether the image is turned grey, bool, (N, ).
        blur (Tensor): Whether the image is blurred, bool, (N, ).
        sigma (Tensor): Standard deviation of the blur in pixels, (N, ).
    """

    shift: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor


@MODELS.register_module()
class TwoViewDataPreprocessor(SelfSupDataPreprocessor):
    """Cut the two views of each canvas, augment the target's, normalise.

    The same recipe as ``PixelShift`` with mmpretrain's ``ColorJitter``,
    ``RandomGrayscale`` and ``GaussianBlur``, for a batch of uint8 canvases at
    once, in float32 whatever the autocast type is. Each image has its own
    random parameters. In training it takes canvases and gives
    ``[online, target]``; otherwise it only normalises.

    Args:
        size (int): Side S of both windows in pixels.
        max_shift (int): Bound p of the shift in pixels, which is below it; 0
            switches the shift off. Defaults to 32.
        canvas_size (int, optional): Side of the canvases in pixels, so that
            one too small is found when the model is built. Defaults to None,
            checked at each batch alone.
        jitter (Sequence[float]): Strengths of the jitter of brightness,
            contrast, saturation and hue. Defaults to (0.4, 0.4, 0.4, 0.1).
        jitter_prob (float): Probability of colour jitter. Defaults to 0.8.
        grey_prob (float): Probability of turning the image grey. Defaults to
            0.2.
        blur_sigma (Sequence[float]): Range of the Gaussian blur's standard
            deviation in pixels. Defaults to (0.1, 2.0).
        blur_prob (float): Probability of a blur. Defaults to 0.5.
        target_view (bool): Whether the target view is made. MAE, which has
            no target, needs the online view alone. Defaults to True.
        mean (Sequence[float]): Mean of each colour, on the scale of 0 to 255.
            Must be given.
        std (Sequence[float]): Standard deviation of each colour, on the same
            scale. Must be given.
        **kwargs: Other arguments of ``SelfSupDataPreprocessor``, as
            ``to_rgb``.

    Raises:
        ValueError: If an argument is out of range, the canvas is smaller than
            ``size + max_shift``, or images are not of three colours.
    """

    def __init__(self,
                 size: int,
                 max_shift: int = 32,
                 canvas_size: Optional[int] = None,
                 jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
                 jitter_prob: float = 0.8,
                 grey_prob: float = 0.2,
                 blur_sigma: Sequence[float] = (0.1, 2.0),
                 blur_prob: float = 0.5,
                 target_view: bool = True,
                 mean: Optional[Sequence[float]] = None,
                 std: Optional[Sequence[float]] = None,
                 **kwargs) -> None:
        for name, value in (('mean', mean), ('std', std)):
            if value is None or len(value) != 3:
                raise ValueError(
                    'TwoViewDataPreprocessor makes views of colour images, so '
                    f'that {name} must have three values, but got {value}; '
                    'for images of other channels use SelfSupDataPreprocessor '
                    'with the PixelShift transform')
        super().__init__(
            mean=mean, std=std, **dict(dict(non_blocking=True), **kwargs))
        if size < 1 or max_shift < 0:
            raise ValueError(
                'size must be 1 pixel or more and max_shift 0 or more, but '
                f'got {size} and {max_shift}')
        if canvas_size is not None:
            check_canvas(canvas_size, size, max_shift)
        for name, prob in (('jitter_prob', jitter_prob),
                           ('grey_prob', grey_prob), ('blur_prob',
                                                      blur_prob)):
            if not 0 <= prob <= 1:
                raise ValueError(
                    f'{name} must be between 0 and 1, but got {prob}')
        self.size = size
        self.max_shift = max_shift
        self.jitter = tuple(jitter)
        self.jitter_prob = jitter_prob
        self.grey_prob = grey_prob
        self.blur_sigma = tuple(blur_sigma)
        self.blur_prob = blur_prob
        self.target_view = target_view
        # Odd, and wide enough for 4 sigma to both sides.
        self._kernel = 2 * round(4 * self.blur_sigma[1]) + 1

    def forward(self, data: dict, training: bool = False) -> dict:
        """Make both views, or normalise.

        Args:
            data (dict): ``inputs``, canvases, uint8, (N, 3, H, W), and
                ``data_samples``.
            training (bool): Whether views are made. Defaults to False.

        Returns:
            dict: ``inputs``, ``[online, target]``, float (N, 3, S, S) each
            (``[online]`` with ``target_view=False``), and ``data_samples``.
            Without ``training``, see ``SelfSupDataPreprocessor``.
        """
        if not training:
            return super().forward(data, training)
        seeds = self._seeds(data.get('data_samples'))
        data = self.cast_data(data)
        canvas = data['inputs']
        self._check_channels(canvas)
        if self._channel_conversion:
            canvas = canvas.flip(1)
        # Optimizer wrappers autocast their data preprocessor too, where the
        # blur, a convolution, would round to 1/256.
        with torch.autocast(canvas.device.type, enabled=False):
            if self.target_view:
                params = self.draw_params(len(canvas), seeds)
                views = self.make_views(canvas, params)
            else:
                views = [self._online_view(canvas)]
            views = [self._normalise(view) for view in views]
        return dict(inputs=views, data_samples=data.get('data_samples'))

    @staticmethod
    def _check_channels(canvas: Tensor) -> None:
        if not isinstance(canvas, Tensor) or canvas.dim() != 4:
            raise ValueError(
                'TwoViewDataPreprocessor makes both views of one canvas an '
                'image, (N, 3, H, W), but the data pipeline gives '
                f'{_describe(canvas)}; leave PixelShift and MultiView out, or '
                'use SelfSupDataPreprocessor')
        if canvas.shape[1] != 3:
            raise ValueError(
                'TwoViewDataPreprocessor makes views of colour images, of 3 '
                f'channels, but got images of {canvas.shape[1]}; for those '
                'use SelfSupDataPreprocessor with the PixelShift transform')

    @staticmethod
    def _seeds(data_samples) -> Optional[List[int]]:
        if not data_samples or 'view_seed' not in data_samples[0]:
            return None
        return [sample.view_seed for sample in data_samples]

    def draw_params(self,
                    count: int,
                    seeds: Optional[Sequence[int]] = None) -> ViewParams:
        """Draw the random parameters of a batch.

        Args:
            count (int): Number N of images.
            seeds (Sequence[int], optional): A seed for each image; the same
                ones give the same parameters. Defaults to None, torch's
                global generator, which ``StepSeedHook`` seeds for step and
                rank.

        Returns:
            ViewParams: The parameters, on the CPU.
        """
        generator = None
        if seeds is not None:
            generator = torch.Generator().manual_seed(mix(*seeds))

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        shift = torch.randint(
            max(self.max_shift, 1), (count, 2), generator=generator)
        *scales, hue = self.jitter
        factors = [uniform(max(0, 1 - s), 1 + s) for s in scales]
        factors.append(uniform(-hue, hue))
        return ViewParams(
            shift=shift,
            jitter=uniform(0, 1) < self.jitter_prob,
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
            factors=torch.stack(factors, dim=1),
            grey=uniform(0, 1) < self.grey_prob,
            blur=uniform(0, 1) < self.blur_prob,
            sigma=uniform(*self.blur_sigma))

    def make_views(self, canvas: Tensor, params: ViewParams) -> List[Tensor]:
        """Cut both windows and augment the target's.

        Args:
            canvas (Tensor): RGB canvases, uint8, (N, 3, H, W).
            params (ViewParams): Random parameters of each image.

        Returns:
            List[Tensor]: Online and target view, float in [0, 1],
            (N, 3, S, S).
        """
        numbers = self._numbers(params)
        if canvas.is_cuda:
            numbers = numbers.pin_memory()
        # The one copy to the device: nothing there decides about shapes.
        numbers = numbers.to(canvas.device, non_blocking=True)
        target = self._cut(canvas, numbers[:, :2])
        at_once = len(canvas)
        if not canvas.is_cuda:
            # A CPU's caches hold a few images; pieces are all of one size.
            at_once = next(
                (n for n in (8, 7, 6, 5, 4) if at_once % n == 0), at_once)
        pieces = zip(target.split(at_once), numbers[:, 2:].split(at_once))
        return [self._online_view(canvas),
                torch.cat([self.augment(*piece) for piece in pieces])]

    @staticmethod
    def _numbers(params: ViewParams) -> Tensor:
        """Write all parameters as one float tensor, (N, 2 + 3 + 3 * 7)."""
        mixes = plan_mixes(
            params.jitter, params.order, params.factors, params.grey)
        turns = params.factors[:, -1] * params.jitter
        sigma = params.sigma * params.blur
        return torch.cat([
            params.shift, torch.stack([turns, sigma], dim=1), mixes.flatten(1)
        ], dim=1)

    def _online_view(self, canvas: Tensor) -> Tensor:
        """Cut the window at the top left corner."""
        check_canvas(min(canvas.shape[2:]), self.size, self.max_shift)
        return canvas[:, :, :self.size, :self.size].float() / 255

    def _cut(self, canvas: Tensor, shift: Tensor) -> Tensor:
        """Cut each image's own window."""
        check_canvas(min(canvas.shape[2:]), self.size, self.max_shift)
        rows, columns = shift.long().unbind(1)
        image = torch.arange(len(canvas), device=canvas.device)
        # All windows there are, as a view: (N, C, rows, columns, S, S).
        windows = canvas.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows[image, :, rows, columns]

    def augment(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Jitter, then grey, then blur, each image by its own parameters.

        Args:
            images (Tensor): RGB images, uint8, (N, 3, S, S).
            numbers (Tensor): Turns of the hue, standard deviation of the blur
                (0 for none), and what ``plan_mixes`` gives, (N, 2 + 7 * 3).

        Returns:
            Tensor: Images, float in [0, 1], (N, 3, S, S).
        """
        turns, sigma, mixes = numbers.tensor_split([1, 2], dim=1)
        mixes = mixes.unflatten(1, (NUM_MIXES, 3))
        images = images.float() / 255
        for number in range(3):
            mix_with_grey_(images, mixes[:, number])
        turned = turn_hue(images, turns.flatten())
        images = torch.where(turns[..., None, None] == 0, images, turned)
        for number in range(3, NUM_MIXES):
            mix_with_grey_(images, mixes[:, number])
        blurred = gaussian_blur2d(
            images, (self._kernel, self._kernel),
            sigma.clamp_min(self.blur_sigma[0]).expand(-1, 2),
            border_type='replicate').clamp_(0, 1)
        return torch.where(sigma[..., None, None] == 0, images, blurred)

    def _normalise(self, view: Tensor) -> Tensor:
        return (view * 255).sub_(self.mean).div_(self.std)
