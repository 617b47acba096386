"""Samplers that give each drawn sample a random seed of its own."""
from itertools import islice
from typing import Iterator

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.registry import DATA_SAMPLERS

from .seeding import mix


class SeededIndex(int):
    """A sample's index that carries the seed of this drawing of it.

    Concatenated and repeated data sets reckon with an index before they hand
    it on; what they get by ``-`` and ``%`` has the seed too.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SeededIndex':
        """Make an index."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self):
        return SeededIndex, (int(self), self.seed)

    def __sub__(self, other: int) -> 'SeededIndex':
        return SeededIndex(int(self) - other, self.seed)

    def __mod__(self, other: int) -> 'SeededIndex':
        return SeededIndex(int(self) % other, self.seed)


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
    """mmengine's ``InfiniteSampler`` with a seed for each sample.

    The seed follows from the sampler's own and the place of the sample in the
    endless sequence. Each iterator begins at its start.
    """

    _start = 0

    def skip(self, num_samples: int) -> None:
        """Begin after samples that a stopped run has trained on.

        Args:
            num_samples (int): Number of samples of this process, counted
                from the start.
        """
        self._start = num_samples

    def __iter__(self) -> Iterator[int]:
        indices = enumerate(self._indices_of_rank())
        for place, index in islice(indices, self._start, None):
            yield SeededIndex(index, mix(self.seed, self.rank, place))
