"""Attention maps, and patch features as colours."""
import math

import numpy as np
import torch
from torch import Tensor, nn

from ..image_size import Pair, patch_grid


@torch.no_grad()
def attention_maps(backbone: nn.Module,
                   images: Tensor,
                   layer: int = -1) -> Tensor:
    """Compute the attention that each patch receives.

    Args:
        backbone (nn.Module): mmpretrain's ``VisionTransformer``.
        images (Tensor): Normalised images, (N, C, H, W).
        layer (int): Index of the layer. Defaults to -1, the last.

    Returns:
        Tensor: Attention weights of the class token (the mean of several, and
        of all patches without one) for each head, (N, heads, L). The sum over
        L is at most 1.
    """
    attention = backbone.layers[layer].attn
    taken: list[Tensor] = []
    handle = attention.register_forward_pre_hook(
        lambda module, args: taken.append(args[0]))
    try:
        backbone(images)
    finally:
        handle.remove()
    weights = attention_weights(attention, taken[0])
    extra = backbone.num_extra_tokens
    asking = getattr(backbone, 'num_class_tokens', 1 if extra else 0) or None
    return weights[:, :, :asking, extra:].mean(dim=2)


def attention_weights(attention: nn.Module, tokens: Tensor) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d)) of mmpretrain's attention.

    Args:
        attention (nn.Module): ``MultiheadAttention``.
        tokens (Tensor): Its input, (N, T, D).

    Returns:
        Tensor: (N, heads, T, T); row i has the weights of token i.
    """
    count, length, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(
        count, length, 3, attention.num_heads, attention.head_dims)
    query, key = (qkv[:, :, i].transpose(1, 2) for i in range(2))
    scores = query @ key.transpose(-2, -1) / math.sqrt(attention.head_dims)
    return scores.softmax(dim=-1)


def overlay(pictures: np.ndarray, maps: Tensor) -> np.ndarray:
    """Overlay attention maps on pictures, with bright high values.

    Args:
        pictures (np.ndarray): uint8, (N, H, W, 3).
        maps (Tensor): (N, L), over the patches, row-major.

    Returns:
        np.ndarray: uint8, (N, H, W, 3).
    """
    from matplotlib import colormaps
    size = pictures.shape[1:3]
    # Each map has its own scale; a few patches have most of the attention.
    low, high = (maps.quantile(q, dim=1, keepdim=True) for q in (0.02, 0.98))
    shares = ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    large = torch.nn.functional.interpolate(
        shares.view(-1, 1, *patch_grid(size, maps.shape[1])), size,
        mode='bilinear')[:, 0]
    heat = colormaps['inferno'](large.cpu().numpy())[..., :3] * 255
    grey = pictures.mean(axis=-1, keepdims=True)
    return (0.35 * grey + 0.65 * heat).round().astype(np.uint8)


def colour_features(features: Tensor,
                    grid: Pair | None = None) -> np.ndarray:
    """Convert patch features to colours by principal components.

    The components are computed over all patches of all images, so a colour has
    the same meaning in all pictures.

    Args:
        features (Tensor): (N, L, D), over the patches, row-major.
        grid (tuple[int, int], optional): Height and width in patches.
            Defaults to a square.

    Returns:
        np.ndarray: uint8, (N, height, width, 3), one pixel for each patch. Red
        is the first component.
    """
    count, length, width = features.shape
    rows = features.detach().double().cpu().reshape(-1, width)
    rows = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(rows.t() @ rows)
    vectors = vectors.flip(1)[:, :3]
    # The sign of a component is arbitrary: fix it.
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    scores = rows @ (vectors * largest.sign())
    low, high = (torch.from_numpy(np.quantile(scores.numpy(), q, axis=0))
                 for q in (0.01, 0.99))
    shares = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = (shares * 255).round().to(torch.uint8)
    if colours.shape[1] < 3:  # features of less than three channels
        colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    rows, columns = grid or [math.isqrt(length)] * 2
    return colours.view(count, rows, columns, 3).numpy()
