"""Leaving out batches that a stopped run has trained on."""
from itertools import islice
from typing import Any, Iterator

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
)

from ..datasets import SeededInfiniteSampler, SeededSampler


class _SkipOnce:
    """Lists of indices, without the first ones the first time.

    Args:
        batches (Sampler): The sampler, which gives lists of indices, or single
            ones.
        count (int): Number of the first ones that are left out, once.
    """

    def __init__(self, batches: Sampler, count: int) -> None:
        self.batches = batches
        self.count = count

    def __iter__(self) -> Iterator:
        # Not before the first is asked for: DataLoader drops an iterator.
        count, self.count = self.count, 0
        yield from islice(self.batches, count, None)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # not there yet, while copied or unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)


def skip_batches(loader: DataLoader, count: int) -> bool:
    """Let the next pass over a loader begin later, without loading anything.

    Samplers of this project go there at once. Those of every other sort are
    asked for the indices that are left out, so that those after them are the
    same.

    Args:
        loader (DataLoader): The data loader, modified in place.
        count (int): Number of batches to leave out.

    Returns:
        bool: Whether it could be done; not where the data set is a stream.
    """
    if not isinstance(loader, DataLoader) or isinstance(
            loader.dataset, IterableDataset):
        return False
    batches, sampler = loader.batch_sampler, index_sampler(loader)
    if type(batches) is BatchSampler and isinstance(
            sampler, (SeededSampler, SeededInfiniteSampler)):
        sampler.skip(count * batches.batch_size)
        return True
    name = 'sampler' if loader.batch_sampler is None else 'batch_sampler'
    # DataLoader guards the name, since a replaced sampler is rarely meant.
    vars(loader)[name] = _SkipOnce(getattr(loader, name), count)
    return True


def index_sampler(loader: DataLoader) -> Any:
    """Give what draws a loader's indices, inside of its batch sampler."""
    inner = getattr(loader.batch_sampler, 'sampler', None)
    return loader.sampler if inner is None else inner
