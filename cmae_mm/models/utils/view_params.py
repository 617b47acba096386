"""What is drawn at random for the views of a batch."""
from typing import NamedTuple

from torch import Tensor


class ViewParams(NamedTuple):
    """Random parameters of N images, on the CPU.

    Attributes:
        shift (Tensor): Shift ``(r_y, r_x)`` of the target window in pixels,
            (N, 2).
        jitter (Tensor): Whether colours are jittered, bool, (N, ).
        order (Tensor): Order in which brightness, contrast, saturation and
            hue are changed, (N, 4).
        factors (Tensor): Factors of these four, (N, 4), hue in turns; without
            colour those of brightness and contrast alone, of each channel,
            (N, 2, C).
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
