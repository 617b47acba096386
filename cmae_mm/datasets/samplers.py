"""Samplers that give each drawn sample a random seed of its own."""
from typing import Iterator

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.registry import DATA_SAMPLERS

from .seeding import mix

# Indices that are Python numbers at a time.
_CHUNK = 1 << 16


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


def _one_by_one(indices: np.ndarray) -> Iterator[int]:
    """Give the numbers of an array, of which few are objects at a time."""
    for start in range(0, len(indices), _CHUNK):
        yield from indices[start:start + _CHUNK].tolist()


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` with a seed for each sample.

    The seed follows from the sampler's own, the epoch, and the place of the
    sample in the epoch: the same random views whatever the number of workers.
    The order is ``DefaultSampler``'s, in an eighth of its memory.
    """

    _first = 0

    def skip(self, num_samples: int) -> None:
        """Begin the next pass after samples that a run has trained on.

        Args:
            num_samples (int): Number of samples of this process, counted
                from the start of the epoch.
        """
        self._first = num_samples

    def order(self) -> np.ndarray:
        """Give the order of the epoch, of all processes, int64, (N, ).

        Override to shuffle otherwise. It must follow from ``self.seed`` and
        ``self.epoch`` alone.
        """
        size = len(self.dataset)
        if not self.shuffle:
            return np.arange(size)
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        return torch.randperm(size, generator=generator).numpy()

    def __iter__(self) -> Iterator[int]:
        # Not before the first is asked for: DataLoader drops an iterator.
        first, self._first = self._first, 0
        order = self.order()
        if self.round_up:
            order = np.resize(order, self.total_size)  # begins anew
        # A copy, so that the whole order goes.
        order = order[self.rank:self.total_size:self.world_size].copy()
        for place, index in enumerate(_one_by_one(order[first:]), first):
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

    def _indices_from(self, num_samples: int) -> Iterator[int]:
        """Give this process's indices after some of them."""
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        # Place in what all processes draw, pass after pass over the data.
        place = self.rank + num_samples * self.world_size
        while True:
            if not self.shuffle:
                order = np.arange(self.size)
            else:
                order = torch.randperm(self.size, generator=generator).numpy()
            yield from _one_by_one(order[place::self.world_size])
            # Beyond the end by as much as the next pass begins later.
            left = max(self.size - place, 0)
            place += -(-left // self.world_size) * self.world_size - self.size

    def __iter__(self) -> Iterator[int]:
        indices = self._indices_from(self._start)
        for place, index in enumerate(indices, self._start):
            yield SeededIndex(index, mix(self.seed, self.rank, place))
