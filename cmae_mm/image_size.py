"""Sizes of images: the side of a square, or height and width."""
import math
from collections.abc import Sequence
from typing import Any

# A size in pixels as given by users and configs.
ImageSize = int | Sequence[int]
# (height, width)
Pair = tuple[int, int]


def to_pair(size: Any, name: str = 'img_size') -> Pair:
    """Return height and width of a size.

    Args:
        size (int | Sequence[int]): The side of a square in pixels, or
            (height, width).
        name (str): Name of the setting, for the error. Defaults to
            'img_size'.

    Returns:
        tuple[int, int]: Height and width.

    Raises:
        ValueError: If it is neither.
    """
    pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(pair) != 2 or not all(
            isinstance(side, int) and not isinstance(side, bool)
            and side > 0 for side in pair):
        raise ValueError(
            f'{name} must be a whole number of pixels, the side of a square, '
            f'or (height, width), but got {size!r}')
    return pair[0], pair[1]


def to_size(pair: Sequence[int]) -> ImageSize:
    """Return the side of a square, and (height, width) of other sizes."""
    height, width = pair
    return height if height == width else (height, width)


def format_size(size: ImageSize) -> str:
    """Return a size in words: '224' for a square, '128x512' for others."""
    return 'x'.join(map(str, dict.fromkeys(to_pair(size))))


def resize_size(size: ImageSize, short_side: int | None = None) -> Pair:
    """Return the size that images are resized to cover, for a centre crop.

    Args:
        size (int | Sequence[int]): Size of the crop in pixels.
        short_side (int, optional): Short side of the covered size, which has
            the crop's aspect. Defaults to 256/224 of the crop's.

    Returns:
        tuple[int, int]: Height and width in pixels.
    """
    height, width = to_pair(size, 'size')
    short = min(height, width)
    covered = short_side or round(short * 256 / 224)
    return round(covered * height / short), round(covered * width / short)


def cover_size(size: Sequence[int], image: Sequence[int]) -> Pair:
    """Return the smallest size of an image that covers another one.

    Args:
        size (Sequence[int]): Height and width to cover, in pixels.
        image (Sequence[int]): Height and width of the image, whose aspect is
            kept.

    Returns:
        tuple[int, int]: Height and width in pixels.
    """
    (rows, columns), (height, width) = size, image
    # By the dimension in which the image covers the least.
    new, old = (columns, width) if width * rows < height * columns else (
        rows, height)
    return new * height // old, new * width // old


def find_grid(count: int, *likely: Sequence[int] | None) -> Pair | None:
    """Find the grid of a number of patches.

    Args:
        count (int): Number of patches.
        *likely (Sequence[int], optional): Candidate grids. The first with this
            number of patches is used.

    Returns:
        tuple[int, int] | None: Height and width in patches: a likely grid,
        otherwise a square; None if neither has this number of patches.
    """
    side = math.isqrt(max(count, 0))
    for grid in (*likely, (side, side)):
        if grid is not None and count == grid[0] * grid[1] > 0:
            return grid[0], grid[1]
    return None


def patch_grid(size: Sequence[int], count: int) -> Pair:
    """Return the grid of a number of square patches that fill an image.

    Args:
        size (Sequence[int]): Height and width of the image in pixels.
        count (int): Number of patches.

    Returns:
        tuple[int, int]: Height and width in patches.
    """
    height, width = size
    side = math.isqrt(height * width // count)
    return height // side, width // side


def divide(img_size: ImageSize, patch_size: int,
           name: str = 'patch_size') -> Pair:
    """Return the height and width of an image in patches.

    Args:
        img_size (int | Sequence[int]): Size of the image in pixels.
        patch_size (int): Side of a patch in pixels.
        name (str): Its name, for the error. Defaults to 'patch_size'.

    Returns:
        tuple[int, int]: The grid of patches.

    Raises:
        ValueError: If a size is invalid, or the patch size does not divide the
            image.
    """
    height, width = to_pair(img_size)
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(f'{name} must be a whole number of pixels, but got '
                         f'{patch_size!r}')
    if height % patch_size or width % patch_size:
        raise ValueError(
            f'{name}={patch_size} does not divide '
            f'img_size={format_size(img_size)}; choose an image size that is '
            f'a multiple of {patch_size}')
    return height // patch_size, width // patch_size
