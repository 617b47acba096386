"""Checks of arguments that transforms and data preprocessors share."""
import math
from typing import Any, Sequence, Tuple


def check_numbers(name: str, value: Any, count: int, least: float = 0,
                  most: float = math.inf) -> Tuple[float, ...]:
    """Check a sequence of numbers.

    Args:
        name (str): Name of the argument, for the error.
        value (Any): Its value.
        count (int): How many numbers it must have.
        least (float): The smallest number allowed. Defaults to 0.
        most (float): The largest number allowed. Defaults to no limit.

    Raises:
        ValueError: If it has others.
    """
    if not isinstance(value, Sequence) or len(value) != count or not all(
            isinstance(number, (int, float)) and math.isfinite(number)
            and least <= number <= most for number in value):
        bound = (f' from {least:g} to {most:g}' if most < math.inf
                 else f' of {least:g} or more')
        raise ValueError(f'{name} must be {count} numbers{bound}, but got '
                         f'{value!r}')
    return tuple(value)


def check_range(name: str, value: Any, most: float = math.inf
                ) -> Tuple[float, float]:
    """Check a range of numbers above 0.

    Args:
        name (str): Name of the argument, for the error.
        value (Any): Its value.
        most (float): The largest number allowed. Defaults to no limit.

    Raises:
        ValueError: If it is none.
    """
    low, high = check_numbers(name, value, 2, 0, most)
    if not 0 < low <= high:
        raise ValueError(f'{name} must be two numbers above 0, the lower one '
                         f'first, but got {value!r}')
    return low, high


def check_share(name: str, value: Any) -> float:
    """Check a probability or a share.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{name} must be between 0 and 1, but got {value!r}')
    return value


def check_canvas(canvas_size: int, size: int, max_shift: int) -> None:
    """Check that both windows fit into the canvas.

    Args:
        canvas_size (int): Side of the canvas in pixels.
        size (int): Side of both windows in pixels.
        max_shift (int): Bound of the shift in pixels; the shift is below it.

    Raises:
        ValueError: If they do not fit, or are no sizes.
    """
    for name, value, least in (('size', size, 1), ('max_shift', max_shift, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f'{name} must be a whole number of {least} or '
                             f'more pixels, but got {value!r}')
    if canvas_size < size + max_shift:
        raise ValueError(
            f'a canvas of {canvas_size} pixels is too small for windows of '
            f'size={size} shifted by up to max_shift={max_shift}; it must be '
            f'{size + max_shift} or more')
