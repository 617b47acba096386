"""Seeds that follow from numbers, and the generators they are for."""
import random

import numpy as np
import torch

_MASK = (1 << 63) - 1


def mix(*numbers: int) -> int:
    """Mix whole numbers into one of 63 bits, much as a hash does."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ number) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state ^= state >> 31
    return state & _MASK


def seed_generators(seed: int) -> None:
    """Seed the generators that transforms draw from on the CPU.

    Args:
        seed (int): A seed of any size, 0 or more.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
