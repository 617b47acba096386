"""Samplers that give each drawn sample a random seed of its own."""
from typing import Iterator

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.registry import DATA_SAMPLERS

_MASK = (1 << 63) - 1


def mix(*numbers: int) -> int:
    """Mix whole numbers into one of 63 bits, much as a hash does."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ number) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state ^= state >> 31
    return state & _MASK


class SeededIndex(int):
    """A sample's index that carries the seed of this drawing of it."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SeededIndex':
        """Make an index."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self):
        return SeededIndex, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` with a seed for each sample.

    The seed follows from the sampler's own, the epoch, and the place of the
    sample in the epoch: the same random views whatever the number of workers.
    """

    def __iter__(self) -> Iterator[int]:
        for place, index in enumerate(super().__iter__()):
            yield SeededIndex(index,
                              mix(self.seed, self.epoch, self.rank, place))


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's ``InfiniteSampler`` with a seed for each sample."""

    def __iter__(self) -> Iterator[int]:
        for place, index in enumerate(super().__iter__()):
            yield SeededIndex(index, mix(self.seed, self.rank, place))
