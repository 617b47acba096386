"""Shuffling that reads a disk one stretch after the other."""
import numpy as np
import torch
from mmpretrain.registry import DATA_SAMPLERS

from .samplers import SeededSampler


@DATA_SAMPLERS.register_module()
class BlockShuffleSampler(SeededSampler):
    """``SeededSampler`` that keeps to a few shards at a time.

    Blocks of neighbouring images are shuffled, and the images of some blocks
    among each other: within an epoch every image comes once, in an order that
    reads ``window`` blocks a process at a time, which a disk or its cache is
    faster at than at images from everywhere. What comes together in a batch is
    from these blocks alone: folders that are sorted by class should be mixed
    before they are put into shards, or the window be wide.

    Args:
        dataset (Sized): The data set.
        block_size (int): Number of images in a block; that of a shard.
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

    def order(self) -> np.ndarray:
        """Give the order of the epoch, of all processes, int64, (N, )."""
        size = len(self.dataset)
        if not self.shuffle:
            return np.arange(size)
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)

        def shuffled(count: int) -> np.ndarray:
            return torch.randperm(count, generator=generator).numpy()

        starts = shuffled(-(-size // self.block_size)) * self.block_size
        order = (starts[:, None] + np.arange(self.block_size)).ravel()
        order = order[order < size]
        span = self.block_size * self.window * self.world_size
        for start in range(0, size, span):
            part = order[start:start + span]
            order[start:start + span] = part[shuffled(len(part))]
        return order
