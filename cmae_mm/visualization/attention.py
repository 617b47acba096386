"""What an encoder looks at, and which patches are alike to it."""
import math
from typing import List

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def attention_maps(backbone: nn.Module,
                   images: Tensor,
                   layer: int = -1) -> Tensor:
    """Give how much attention each patch gets.

    Args:
        backbone (nn.Module): mmpretrain's ``VisionTransformer``.
        images (Tensor): Normalised images, (N, C, H, W).
        layer (int): The layer. Defaults to -1, the last.

    Returns:
        Tensor: Shares of the attention of the class token (or of all patches,
        on average, where there is none) that the patches get from each head,
        (N, heads, L), summing to 1 or less.
    """
    attention = backbone.layers[layer].attn
    taken: List[Tensor] = []
    handle = attention.register_forward_pre_hook(
        lambda module, args: taken.append(args[0]))
    try:
        backbone(images)
    finally:
        handle.remove()
    weights = attention_weights(attention, taken[0])
    extra = backbone.num_extra_tokens
    weights = weights[:, :, 0] if extra else weights.mean(dim=2)
    return weights[..., extra:]


def attention_weights(attention: nn.Module, tokens: Tensor) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d)) of mmpretrain's attention.

    Args:
        attention (nn.Module): ``MultiheadAttention``.
        tokens (Tensor): Its input, (N, T, D).

    Returns:
        Tensor: (N, heads, T, T); row i is how token i attends.
    """
    count, length, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(
        count, length, 3, attention.num_heads, attention.head_dims)
    query, key = (qkv[:, :, i].transpose(1, 2) for i in range(2))
    scores = query @ key.transpose(-2, -1) / math.sqrt(attention.head_dims)
    return scores.softmax(dim=-1)


def overlay(pictures: np.ndarray, maps: Tensor) -> np.ndarray:
    """Lay maps over pictures: bright where much attention goes.

    Args:
        pictures (np.ndarray): uint8, (N, S, S, 3).
        maps (Tensor): (N, L), over a square grid of patches.

    Returns:
        np.ndarray: uint8, (N, S, S, 3).
    """
    from matplotlib import colormaps
    grid = round(maps.shape[1]**0.5)
    # Each its own scale; a few patches take most of the attention.
    low, high = (maps.quantile(q, dim=1, keepdim=True) for q in (0.02, 0.98))
    shares = ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    size = pictures.shape[1]
    large = torch.nn.functional.interpolate(
        shares.view(-1, 1, grid, grid), (size, size), mode='bilinear')[:, 0]
    heat = colormaps['inferno'](large.cpu().numpy())[..., :3] * 255
    grey = pictures.mean(axis=-1, keepdims=True)
    return (0.35 * grey + 0.65 * heat).round().astype(np.uint8)


def colour_features(features: Tensor) -> np.ndarray:
    """Turn patch features into colours by their first principal components.

    The components are those of all patches of all images together, so that a
    colour means the same in each picture.

    Args:
        features (Tensor): (N, L, D), over a square grid of patches.

    Returns:
        np.ndarray: uint8, (N, G, G, 3), a pixel for each patch; red is the
        first component.
    """
    count, length, width = features.shape
    rows = features.detach().double().cpu().reshape(-1, width)
    rows = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(rows.t() @ rows)
    vectors = vectors.flip(1)[:, :3]
    # A vector and its opposite are one component: choose one.
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    scores = rows @ (vectors * largest.sign())
    low, high = (torch.from_numpy(np.quantile(scores.numpy(), q, axis=0))
                 for q in (0.01, 0.99))
    shares = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    grid = round(length**0.5)
    colours = (shares * 255).round().to(torch.uint8)
    if colours.shape[1] < 3:  # of features narrower than three
        colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    return colours.view(count, grid, grid, 3).numpy()
