"""Brightness and contrast of single channels, in place of colour jitter."""
from torch import Tensor


def brighten(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each channel, of which black is 0.

    Args:
        images (Tensor): (N, C, H, W).
        factors (Tensor): (N, C), 1 changes nothing.

    Returns:
        Tensor: (N, C, H, W).
    """
    return images * factors[:, :, None, None]


def stretch(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each channel's differences from its mean.

    Args:
        images (Tensor): (N, C, H, W).
        factors (Tensor): (N, C), 1 changes nothing.

    Returns:
        Tensor: (N, C, H, W).
    """
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + (images - mean) * factors[:, :, None, None]
