"""The number of broken images, after each epoch."""
from typing import Any, List

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ...datasets.transforms.loading import BrokenImagesError, LoadImageOrSkip


class BrokenImagesHook(Hook):
    """Report the broken images of each epoch; stop where there are too many.

    A base of the hooks that check a training's data. It counts for the
    transforms that skip broken images, ``LoadCanvas`` and
    ``LoadImageOrSkip``, over all data workers and processes. A loop of
    iterations has an epoch whenever it has drawn as many images as there are.

    Raises:
        BrokenImagesError: In training, if more than ``max_broken`` of an
            epoch's images are broken.
    """

    _counted = (0, 0)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Report at the end of an epoch of a loop of iterations."""
        if _by_iterations(runner) and (
                self.every_n_train_iters(runner, _length(runner))):
            self._report(runner, f'before iteration {runner.iter + 1}')

    def after_train_epoch(self, runner) -> None:
        """Report at the end of an epoch."""
        if not _by_iterations(runner):
            self._report(runner, f'of epoch {runner.epoch + 1}')

    def _report(self, runner, when: str) -> None:
        loaders = find_skipping(runner.train_dataloader.dataset)
        if not loaders:
            return
        now = (sum(t.loaded for t in loaders), sum(t.broken for t in loaders))
        counts = torch.tensor(now) - torch.tensor(self._counted)
        self._counted = now
        all_reduce(counts)
        loaded, broken = counts.tolist()
        if not broken:
            return
        # Different each time: mmengine drops warnings that repeat others.
        said = (f'{broken:,} of {loaded:,} images {when} '
                f'({broken / loaded:.1%}) could not be decoded')
        limit = max(t.max_broken for t in loaders)
        if broken > limit * loaded:
            raise BrokenImagesError(
                f'{said}, more than max_broken={limit:g} of '
                f'{type(loaders[0]).__name__} allows; the log names them. '
                'Remove them, or set max_broken higher')
        runner.logger.warning(f'{said}; others took their place.')


def _by_iterations(runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def _length(runner) -> int:
    try:
        return len(runner.train_dataloader)
    except TypeError:  # a stream of data
        return 0


def find_skipping(dataset: Any) -> List[LoadImageOrSkip]:
    """Find the transforms of a data set that skip broken images."""
    inner = getattr(dataset, 'datasets', None) or [
        getattr(dataset, 'dataset', None)]
    found = [t for one in inner if one is not None
             for t in find_skipping(one)]
    pipeline = getattr(dataset, 'pipeline', None)
    return found + [t for t in getattr(pipeline, 'transforms', ())
                    if isinstance(t, LoadImageOrSkip)]
