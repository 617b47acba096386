"""Samplers with a random seed for each sample."""
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.registry import DATA_SAMPLERS

# Number of indices converted to Python integers at a time.
_CHUNK = 1 << 16
_MASK = (1 << 63) - 1


def mix_seeds(*numbers: int) -> int:
    """Hash integers to an integer of 63 bits."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ number) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state ^= state >> 31
    return state & _MASK


def seed_generators(seed: int) -> None:
    """Seed the CPU generators of ``random``, numpy and torch.

    Args:
        seed (int): A seed of any size, 0 or more.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


class SeededIndex(int):
    """The index of a sample with a random seed.

    ``-`` and ``%``, which concatenated and repeated data sets apply, keep the
    seed.
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
    """Yield the numbers of an array, converted in chunks to save memory."""
    for start in range(0, len(indices), _CHUNK):
        yield from indices[start:start + _CHUNK].tolist()


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` with a seed for each sample.

    Seeds depend on the sampler's seed, the epoch and the position in the
    epoch, so random views do not depend on the number of workers. The order
    equals that of ``DefaultSampler`` and needs an eighth of its memory.
    """

    _first = 0

    def skip(self, num_samples: int) -> None:
        """Skip samples at the start of the next epoch.

        Args:
            num_samples (int): Number of samples of this process, counted
                from the start of the epoch.
        """
        self._first = num_samples

    def order(self) -> np.ndarray:
        """Return the order of the epoch, of all processes, int64, (N, ).

        Subclasses may override it. It may only depend on ``self.seed`` and
        ``self.epoch``.
        """
        size = len(self.dataset)
        if not self.shuffle:
            return np.arange(size)
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        return self._permute(size, lambda count: torch.randperm(
            count, generator=generator).numpy())

    def _permute(self, size: int, draw: Callable[[int], np.ndarray]
                 ) -> np.ndarray:
        """Shuffle numbers with a function that draws permutations."""
        return draw(size)

    def __iter__(self) -> Iterator[int]:
        # Here, not before: DataLoader discards its first iterator.
        first, self._first = self._first, 0
        order = self.order()
        if self.round_up:
            order = np.resize(order, self.total_size)  # starts again
        # A copy, so that the order of all ranks is freed.
        order = order[self.rank:self.total_size:self.world_size].copy()
        for place, index in enumerate(_one_by_one(order[first:]), first):
            yield SeededIndex(index, mix_seeds(
                self.seed, self.epoch, self.rank, place))


@DATA_SAMPLERS.register_module()
class BlockShuffleSampler(SeededSampler):
    """``SeededSampler`` that draws from a few shards at a time.

    Blocks of consecutive images are shuffled, then the images within
    ``window`` blocks, for each process. Every image is drawn once per epoch.
    Reading is faster than in random order. Since the images of a batch come
    from these blocks, shuffle folders that are sorted by class before packing
    them, or use a wide window.

    Args:
        dataset (Sized): The data set.
        block_size (int): Number of images in a block, usually a shard.
            Defaults to 2000.
        window (int): Number of blocks, for each process, whose images are
            shuffled among each other. Defaults to 16.
        **kwargs: Other arguments of ``SeededSampler``.

    Raises:
        ValueError: If one of the numbers is below 1.
    """

    def __init__(self,
                 dataset,
                 block_size: int = 2000,
                 window: int = 16,
                 **kwargs) -> None:
        super().__init__(dataset, **kwargs)
        if block_size < 1 or window < 1:
            raise ValueError(
                'block_size and window must be 1 or more, but got '
                f'{block_size} and {window}')
        self.block_size = block_size
        self.window = window

    def _permute(self, size: int, draw: Callable[[int], np.ndarray]
                 ) -> np.ndarray:
        starts = draw(-(-size // self.block_size)) * self.block_size
        order = (starts[:, None] + np.arange(self.block_size)).ravel()
        order = order[order < size]
        span = self.block_size * self.window * self.world_size
        for start in range(0, size, span):
            part = order[start:start + span]
            order[start:start + span] = part[draw(len(part))]
        return order


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's ``InfiniteSampler`` with a seed for each sample.

    Seeds depend on the sampler's seed and the position in the endless
    sequence. Each iterator starts at its beginning.
    """

    _start = 0

    def skip(self, num_samples: int) -> None:
        """Skip samples at the start.

        Args:
            num_samples (int): Number of samples of this process, counted
                from the start.
        """
        self._start = num_samples

    def _indices_from(self, num_samples: int) -> Iterator[int]:
        """Yield the indices of this process after some of them."""
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        # Position in the sequence of all processes.
        place = self.rank + num_samples * self.world_size
        while True:
            if not self.shuffle:
                order = np.arange(self.size)
            else:
                order = torch.randperm(self.size, generator=generator).numpy()
            yield from _one_by_one(order[place::self.world_size])
            # Position in the next pass.
            left = max(self.size - place, 0)
            place += -(-left // self.world_size) * self.world_size - self.size

    def __iter__(self) -> Iterator[int]:
        indices = self._indices_from(self._start)
        for place, index in enumerate(indices, self._start):
            yield SeededIndex(index, mix_seeds(self.seed, self.rank, place))
