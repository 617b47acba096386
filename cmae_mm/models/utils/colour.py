r"""Changing the colours of whole batches, each image by numbers of its own.

Brightness, contrast and saturation, and turning grey, are one operation:

.. math:: x' = f x + a\,\overline{g(x)} + b\,g(x)

with the grey g of a pixel and its mean over the image, then a clamp. With
:math:`f = 1, a = b = 0` an image stays what it is, so that a batch goes
through in one piece, in shapes that do not depend on what was drawn.
"""
import torch
from torch import Tensor

# Shares of red, green and blue in grey (ITU-R BT.601).
GREY = (0.299, 0.587, 0.114)
# Changes before the hue is turned, three after it, and turning grey.
NUM_MIXES = 7
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def plan_mixes(jitter: Tensor, order: Tensor, factors: Tensor,
               grey: Tensor) -> Tensor:
    """Write down each image's changes as numbers of the operation above.

    Args:
        jitter (Tensor): Whether colours are jittered, bool, (N, ).
        order (Tensor): Order of brightness, contrast, saturation and hue,
            (N, 4).
        factors (Tensor): Factors of these, (N, 4), hue in turns.
        grey (Tensor): Whether the image is turned grey, bool, (N, ).

    Returns:
        Tensor: f, a and b of all changes, (N, 7, 3), and 0 turns of the hue
        between the third and the fourth of them.
    """
    mixes = torch.tensor([1., 0., 0.]).repeat(len(order), NUM_MIXES, 1)
    place = order.argsort(dim=1)  # of each operation
    chosen = jitter.nonzero().flatten()
    for number in (_BRIGHTNESS, _CONTRAST, _SATURATION):
        # Those after the hue come in the second three.
        slot = place[:, number] + 2 * (place[:, number] > place[:, _HUE])
        factor = factors[:, number]
        changed = torch.stack([
            factor,
            (1 - factor) * (number == _CONTRAST),
            (1 - factor) * (number == _SATURATION)], dim=1)
        mixes[chosen, slot[chosen]] = changed[chosen]
    mixes[grey, -1] = torch.tensor([0., 0., 1.])
    return mixes


def mix_with_grey_(images: Tensor, mix: Tensor) -> Tensor:
    """Change brightness, contrast or saturation, or turn grey, in place.

    Args:
        images (Tensor): RGB images in [0, 1], (N, 3, H, W).
        mix (Tensor): f, a and b of each image, (N, 3).

    Returns:
        Tensor: The same tensor, in [0, 1].
    """
    factor, of_mean, of_own = mix[:, :, None, None, None].unbind(1)
    red, green, blue = images.split(1, dim=1)
    grey = (GREY[0] * red).add_(green, alpha=GREY[1]).add_(
        blue, alpha=GREY[2])
    mean = grey.mean(dim=(2, 3), keepdim=True)
    grey.mul_(of_own).add_(of_mean * mean)
    return images.mul_(factor).add_(grey).clamp_(0, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by way of hue, chroma and value.

    Args:
        images (Tensor): RGB images in [0, 1], (N, 3, H, W).
        turns (Tensor): Share of a whole turn, of each image, (N, ).

    Returns:
        Tensor: Changed images, in [0, 1].
    """
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp_min(1e-8).reciprocal_()
    # In sixths of a turn, from 0 to 6: red is at 0, green at 2, blue at 4.
    hue = torch.where(
        red == value, (green - blue).mul_(scale),
        torch.where(green == value, (blue - red).mul_(scale).add_(2),
                    (red - green).mul_(scale).add_(4)))
    hue.add_(6 * turns[:, None, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))
    # Which share of the chroma a colour lacks.
    lacking = ((hue - 3).abs_().neg_().add_(2), (hue - 2).abs_().sub_(1),
               (hue - 4).abs_().sub_(1))
    return torch.cat([
        torch.addcmul(value, chroma, share.clamp_(0, 1), value=-1)
        for share in lacking
    ], dim=1)
