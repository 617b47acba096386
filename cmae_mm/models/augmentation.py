"""Batched colour augmentation of views.

Brightness, contrast and saturation interpolate between the image and a
reference: black, its mean, its grey. Thus a batch with different orders of
these operations needs only a few passes of fixed shapes.
"""
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

BLEND, HUE, BLUR = 'blend', 'hue', 'blur'
# Up to three blends before the hue and up to three after it; the last blend
# converts to grey.
COLOUR_STEPS = (*[BLEND] * 3, HUE, *[BLEND] * 4, BLUR)
CHANNEL_STEPS = (BLEND, BLEND, BLUR)
# Weights of red, green and blue in grey (ITU-R BT.601).
_GREY = (0.299, 0.587, 0.114)


class ViewParams(NamedTuple):
    """Random parameters of N images, on the CPU.

    Attributes:
        shift (Tensor): Shift ``(r_y, r_x)`` of the target window in pixels,
            (N, 2).
        jitter (Tensor): Whether colours are jittered, bool, (N, ).
        order (Tensor): Order of brightness, contrast, saturation and hue,
            (N, 4).
        factors (Tensor): Factors of these four, (N, 4), hue in turns; without
            colour those of brightness and contrast of each channel,
            (N, 2, C).
        grey (Tensor): Whether the image is converted to grey, bool, (N, ).
        blur (Tensor): Whether the image is blurred, bool, (N, ).
        sigma (Tensor): Standard deviation of the blur in pixels, (N, ).
        online (ViewParams, optional): Those of the online view, whose shift
            is not used. None if it is not augmented.
    """

    shift: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor
    online: Optional['ViewParams'] = None


def is_batched(images: Tensor) -> bool:
    """Whether to change all views in operations of fixed shapes.

    On a CPU they are changed one by one: an image stays in the cache, and
    steps that it does not need are skipped.
    """
    return images.device.type != 'cpu'


def plan_augmentation(params: ViewParams, colour: bool) -> Tensor:
    """Sort the random parameters of a batch by augmentation steps.

    Args:
        params (ViewParams): Random parameters of N images.
        colour (bool): Whether the T steps are ``COLOUR_STEPS``; otherwise
            they are ``CHANNEL_STEPS``.

    Returns:
        Tensor: (N, T, 3 + K) on the CPU, K = 1, or C without colour. In the
        last dimension: whether the step is applied, 0 or 1; weights of mean
        and grey in the reference; K factors (turns for the hue, pixels for
        the blur), 1 for a blend that is not applied.
    """
    count, factors = len(params.jitter), params.factors
    if colour:
        factors = factors[..., None]
    steps = COLOUR_STEPS if colour else CHANNEL_STEPS
    # A blend by 1 does not change the image.
    plan = torch.zeros(count, len(steps), 3 + factors.shape[2])
    plan[..., 3:] = 1
    # place[n, k]: position of operation k in the order
    place = params.order.argsort(dim=1)
    if colour:
        step = place + 3 * (place > place[:, 3:])
        step[:, 3] = COLOUR_STEPS.index(HUE)
    else:
        step = (place[:, :2] > place[:, :2].flip(1)).long()
    jitter = params.jitter[:, None, None].expand(-1, factors.shape[1], 1)
    shares = torch.eye(4)[:factors.shape[1], 1:3].expand(count, -1, -1)
    values = torch.cat([
        jitter.float(), shares, torch.where(jitter, factors, 1.)], dim=2)
    plan.scatter_(1, step[..., None].expand_as(values), values)
    if colour:
        plan[:, -2, 0] = params.grey.float()
        plan[:, -2, 2] = 1
        plan[:, -2, 3] = 1 - params.grey.float()
    plan[:, -1, 0] = params.blur.float()
    plan[:, -1, 3:] = params.sigma[:, None]
    return plan


def blend(images: Tensor, shares: Tensor, factors: Tensor,
          colour: bool) -> Tensor:
    """Multiply the difference from a reference.

    Args:
        images (Tensor): (N, C, H, W), in which black is 0.
        shares (Tensor): Weights of the mean and of grey in the reference,
            (N, 2); the rest is black.
        factors (Tensor): (N, 1), or (N, C), for each channel; 1 is the
            identity.
        colour (bool): Whether the mean is that of grey; otherwise it is that
            of each channel.

    Returns:
        Tensor: (N, C, H, W), a new tensor.
    """
    of_mean, of_grey = shares[..., None, None, None].unbind(1)
    if colour:
        red, green, blue = images.split(1, dim=1)
        grey = (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(
            blue, alpha=_GREY[2])
        mean = grey.mean(dim=(2, 3), keepdim=True)
        reference = torch.addcmul(mean * of_mean, grey, of_grey)
    else:
        reference = images.mean(dim=(2, 3), keepdim=True) * of_mean
    return torch.lerp(reference, images, factors[:, :, None, None])


def rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue in HSV space; value and chroma are unchanged.

    Args:
        images (Tensor): Red, green and blue, (N, 3, H, W).
        turns (Tensor): (N, 1); 1 is a full turn.

    Returns:
        Tensor: (N, 3, H, W), a new tensor.
    """
    red, green, blue = images.split(1, dim=1)
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    # in sixths of a turn: 0, 2 and 4 are red, green and blue
    hue = torch.where(
        red == value, green - blue,
        torch.where(green == value, (blue - red).add_(chroma, alpha=2),
                    (red - green).add_(chroma, alpha=4)))
    hue = hue / chroma.masked_fill(chroma == 0, 1)
    hue = hue.add_(turns[..., None, None], alpha=6).remainder_(6)
    # Value minus channel, in units of chroma: 1 within a sixth of the opposite
    # hue (3, 5, and 7 = 1), 0 from two sixths on.
    opposite = torch.arange(3, 8, 2, device=images.device).view(3, 1, 1)
    lack = (hue - opposite).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(value, lack, chroma, value=-1)


def gaussian_kernel(sigma: Tensor, size: int) -> Tensor:
    """Sample Gaussians at integer positions around 0; each sums to 1.

    Args:
        sigma (Tensor): Standard deviations in pixels, (N, 1).
        size (int): Number of samples, odd.

    Returns:
        Tensor: (N, size).
    """
    places = torch.arange(size, device=sigma.device) - size // 2
    weights = torch.exp(-places**2 / (2 * sigma**2))
    return weights / weights.sum(dim=1, keepdim=True)


def blur(images: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Blur each image by its own Gaussian; the border is replicated.

    Args:
        images (Tensor): (N, C, H, W).
        sigma (Tensor): Standard deviation of each image in pixels, (N, 1).
        size (int): Size of the kernel, odd.

    Returns:
        Tensor: (N, C, H, W), a new tensor.
    """
    count, channels, height, width = images.shape
    kernel = gaussian_kernel(sigma, size)
    half = size // 2
    images = F.pad(images, [half] * 4, mode='replicate')
    if is_batched(images):
        groups = count * channels
        weights = kernel.repeat_interleave(channels, dim=0)[:, None, None]
        images = F.conv2d(images.flatten(0, 1)[None], weights, groups=groups)
        images = F.conv2d(images, weights.transpose(2, 3), groups=groups)
        return images.view(count, channels, height, width)
    # Sums of shifted images stay in the CPU cache.
    for dim in (3, 2):
        length = images.shape[dim] - 2 * half
        places = [images.narrow(dim, i, length) for i in range(size)]
        weights = kernel.t()[..., None, None, None]
        images = places[0] * weights[0]
        for place, weight in zip(places[1:], weights[1:]):
            images.addcmul_(place, weight)
    return images


def steps_needed(plan: Tensor) -> tuple[bool, ...]:
    """Return which steps are needed by any image of a plan on the CPU."""
    return tuple(plan[..., 0].bool().any(dim=0).tolist())
