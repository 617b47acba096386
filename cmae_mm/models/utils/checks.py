"""Checks of arguments and inputs, each with a sentence for people."""
from typing import Sequence, Tuple

import torch
from torch import Tensor, nn

from ...datasets.decode import MAX_CHANNELS


def check_grid(img_size: int, patch_size: int, mask_block: int) -> int:
    """Check that patches divide the image and masking blocks the patches.

    Args:
        img_size (int): Side of the square image in pixels.
        patch_size (int): Side of a patch in pixels.
        mask_block (int): Side of a masking block in patches.

    Returns:
        int: Side of the grid of patches.

    Raises:
        ValueError: If a side is not a positive int or does not divide.
    """
    for name, value in (('img_size', img_size), ('patch_size', patch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f'{name} must be a positive int, the side of a square in '
                f'pixels, but got {value!r}')
    if img_size % patch_size:
        raise ValueError(
            f'patch_size={patch_size} does not divide img_size={img_size}'
            '; choose an image size that is a multiple of the patch size')
    grid = img_size // patch_size
    if mask_block < 1 or grid % mask_block:
        raise ValueError(
            f'mask_block={mask_block} does not divide the {grid}x{grid} '
            f'grid of patches (img_size={img_size}, patch_size='
            f'{patch_size}); use mask_block=1, or an image size that is a '
            f'multiple of {patch_size * max(mask_block, 1)}')
    return grid


def check_stages(embed_dims: Sequence[int], depths: Sequence[int],
                 patch_sizes: Sequence[int], kernel_size: int,
                 img_size: int) -> int:
    """Check the sizes of an encoder of two convolution stages and a last one.

    Args:
        embed_dims (Sequence[int]): Width of each stage.
        depths (Sequence[int]): Number of blocks of each stage.
        patch_sizes (Sequence[int]): Side of each stage's patches.
        kernel_size (int): Side of depthwise kernels.
        img_size (int): Side of the square image in pixels.

    Returns:
        int: Side of the grid of the last stage's patches.

    Raises:
        ValueError: If there are not three of each, one is not positive, the
            kernel has no centre, or the image is no multiple of the total
            stride.
    """
    for name, values in (('arch.embed_dims', embed_dims),
                         ('arch.depths', depths),
                         ('patch_sizes', patch_sizes)):
        if len(values) != 3 or any(
                not isinstance(v, int) or v < 1 for v in values):
            raise ValueError(
                f'backbone.{name} must be three positive ints, two of the '
                'convolution stages and one of the transformer, but got '
                f'{tuple(values)}')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            'backbone.kernel_size must be odd, so that a depthwise kernel has '
            f'a centre, but got {kernel_size}')
    stride = patch_sizes[0] * patch_sizes[1] * patch_sizes[2]
    if not isinstance(img_size, int) or img_size < 1 or img_size % stride:
        raise ValueError(
            f'backbone.img_size must be a multiple of the total stride of '
            f'{stride} pixels (patch_sizes={tuple(patch_sizes)}), the side of '
            f'a square, but got {img_size!r}')
    return img_size // stride


def check_in_channels(in_channels: int) -> None:
    """Check the number of channels of an encoder's images.

    Args:
        in_channels (int): Number C of channels.

    Raises:
        ValueError: If it is not from 1 to 64.
    """
    if not isinstance(in_channels, int) or not 1 <= in_channels <= (
            MAX_CHANNELS):
        raise ValueError(
            'backbone.in_channels must be a whole number from 1 to '
            f'{MAX_CHANNELS}, but got {in_channels!r}')


def check_global_blocks(indexes: Sequence[int], depth: int,
                        window_size: int) -> None:
    """Check which blocks have global attention, and the others' windows.

    Args:
        indexes (Sequence[int]): The global blocks, from 0.
        depth (int): Number of blocks.
        window_size (int): Side of a window in tokens; 0 for none.

    Raises:
        ValueError: If there is no such block, or the side is negative.
    """
    wrong = [i for i in indexes if i not in range(depth)]
    if wrong:
        raise ValueError(
            f'backbone.arch.global_attn_indexes has {wrong}, but the last '
            f"stage's {depth} blocks are 0 to {depth - 1}")
    if window_size < 0:
        raise ValueError(
            'backbone.window_size is the side of a window in tokens, or 0 for '
            f'global attention in all blocks, but got {window_size}')


def check_maps(indexes: Sequence[int]) -> None:
    """Check which maps of a pyramid of four are asked for.

    Args:
        indexes (Sequence[int]): Their numbers, from 0.

    Raises:
        ValueError: If there is none, or no such map.
    """
    if not indexes or any(i not in range(4) for i in indexes):
        raise ValueError(
            'backbone.out_indices are some of the four maps, 0 to 3: the three'
            f' stages and the pooled third one; but got {list(indexes)}')


def check_width(width: int, num_heads: int, name: str) -> None:
    """Check a transformer's width.

    Args:
        width (int): Width D of the transformer.
        num_heads (int): Number of attention heads.
        name (str): Prefix of the setting's name, for the error.

    Raises:
        ValueError: If the heads do not divide the width, or it is no multiple
            of 4, as 2-D sine-cosine positions need it.
    """
    if width % 4 or num_heads < 1 or width % num_heads:
        raise ValueError(
            f'{name}num_heads={num_heads} must divide the width, {width}, '
            'which must be a multiple of 4 besides, for sine-cosine '
            'positions; change one of the two')


def check_momentum(momentum: float) -> None:
    """Check the momentum mu of a moving average.

    Args:
        momentum (float): Share of the old average that an update keeps.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < momentum < 1:
        raise ValueError(
            'momentum is the share of the old target that an update keeps'
            f' and must be between 0 and 1, but got {momentum}')


def check_images(images: Tensor, channels: int,
                 size: Tuple[int, int]) -> None:
    """Check that images are of the size that an encoder is built for.

    Args:
        images (Tensor): Images, (N, C, H, W).
        channels (int): Number of channels C of the encoder.
        size (Tuple[int, int]): Height and width of the encoder's images.

    Raises:
        ValueError: If they are not.
    """
    if images.shape[1:] != (channels, *size):
        raise ValueError(
            f'the encoder is built for images of {channels} channels and '
            f'{size[0]}x{size[1]} pixels, but got {tuple(images.shape)}; set '
            'backbone.in_channels and backbone.img_size to what the views '
            'are, or the size of the views to the other')


def note_visible(mask: Tensor, num_visible: int) -> Tensor:
    """Note on a mask that all its rows keep the same number of patches.

    :func:`count_visible` then need not look at it, for which the host would
    have to wait for a GPU. The note holds until the mask is changed, and is
    not passed on to what is made of the mask.

    Args:
        mask (Tensor): Bool, (N, L), True = removed.
        num_visible (int): The number V of visible patches of each row.

    Returns:
        Tensor: The same tensor.
    """
    if not mask.is_inference():  # these do not tell that they were changed
        mask.noted_visible = (num_visible, mask._version)
    return mask


def count_visible(mask: Tensor) -> int:
    """Count the visible patches of a row, and check the mask.

    A mask with the note of :func:`note_visible` is taken at its word.

    Args:
        mask (Tensor): Bool, (N, L), True = removed.

    Returns:
        int: The number V of visible patches, the same in every row.

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If rows differ in their number of visible patches, or if
            nothing is visible or nothing is masked.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise TypeError(
            'the mask must be a bool tensor of shape (N, L), True = removed, '
            f'but got {mask.dtype} of shape {tuple(mask.shape)}')
    noted, version = getattr(mask, 'noted_visible', (0, None))
    if version is not None and version == mask._version:
        return noted
    least, most = torch.stack((~mask).sum(dim=1).aminmax()).tolist()
    if least != most:
        raise ValueError(
            'every row of the mask must keep the same number of patches, '
            f'but the rows keep {least} to {most}')
    if not 0 < least < mask.shape[1]:
        raise ValueError(
            f'the mask keeps {least} of {mask.shape[1]} patches; at least one '
            'must be visible and at least one removed')
    return least


def check_gradient(tokens: Tensor, encoder: nn.Module) -> None:
    """Check that training reaches the encoder.

    Args:
        tokens (Tensor): Output of the encoder.
        encoder (nn.Module): The online encoder.

    Raises:
        RuntimeError: If gradients are wanted and do not reach it.
    """
    if not torch.is_grad_enabled() or tokens.requires_grad:
        return
    if any(p.requires_grad for p in encoder.parameters()):
        raise RuntimeError(
            'no gradient reaches the encoder, as with the reentrant '
            "activation checkpointing of mmengine's own Runner: train "
            'with ResumableRunner, or leave activation_checkpointing out')


def check_fusion(encoder: nn.Module) -> None:
    """Check that an encoder has fusion layers that can be left out.

    Args:
        encoder (nn.Module): The target encoder.

    Raises:
        ValueError: If it has none.
    """
    if getattr(encoder, 'fusions', None) is None:
        raise ValueError(
            "target.with_fusion=False leaves a hybrid encoder's fusion layers "
            f'out, but this {type(encoder).__name__} has none; leave it out')


def check_choice(name: str, value: str, choices: Tuple[str, ...]) -> None:
    """Check that an argument is one of its choices.

    Args:
        name (str): Name of the argument.
        value (str): The value that was given.
        choices (Tuple[str, ...]): The values that are allowed.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        raise ValueError(
            f'{name} must be one of {choices}, but got {value!r}')
