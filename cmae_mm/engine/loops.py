"""Training loops that resume within an epoch."""
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmpretrain.registry import LOOPS
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from ..datasets import SeededInfiniteSampler, SeededSampler

_PENDING = 'due_validation'
_IMAGES, _NAMES = 'training_images', 'training_names'
_BATCH = ('samples_per_step', 'samples_per_iter', 'world_size')


def at_optimizer_step(runner: Runner) -> bool:
    """Return whether the iteration ends an optimizer step."""
    return runner.optim_wrapper.should_update()


def validation_follows(runner: Runner, done: int) -> bool:
    """Return whether the training loop validates at this step.

    Args:
        runner (Runner): The runner, in training.
        done (int): Number of finished epochs, or of finished iterations in a
            loop by iterations.

    Returns:
        bool: False without validation data.
    """
    loop = runner.train_loop
    if runner.val_loop is None or done < loop.val_begin:
        return False
    last = (loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else
            loop.max_iters)
    return done % loop.val_interval == 0 or done == last


def validation_pending(runner: Runner) -> bool:
    """Return whether validation is due after the current state."""
    return bool(runner.message_hub.get_info(_PENDING, False))


def set_validation_pending(runner: Runner, pending: bool) -> None:
    """Store in the message hub whether validation is pending.

    Checkpoints contain the message hub. A resumed run first runs a pending
    validation to determine the best checkpoint.

    Args:
        runner (Runner): The runner, in training.
        pending (bool): Whether validation is pending.
    """
    runner.message_hub.update_info(_PENDING, pending)


class _Resumable:
    """Mixin with methods of both loops."""

    runner: Any
    dataloader: Any
    _iter: int

    def batch_numbers(self) -> tuple[int, int, int]:
        """Return samples in a step and in an iteration, and the ranks."""
        size = self.dataloader.batch_size or getattr(
            self.dataloader.batch_sampler, 'batch_size', 1)
        per_iter = size * get_world_size()
        accumulated = self.runner.optim_wrapper._accumulative_counts
        return per_iter * accumulated, per_iter, get_world_size()

    def former_batch_numbers(self) -> tuple[int, int, int]:
        """Return these numbers of the resumed run, or the current ones."""
        info = self.runner.message_hub.runtime_info
        step, iteration, ranks = (
            info.get(name, now)
            for name, now in zip(_BATCH, self.batch_numbers()))
        return step, iteration, ranks

    def move_to_new_length(self) -> bool:
        """Adapt the position of a resumed run to another epoch length."""
        return False

    def _prepare(self) -> None:
        """Store the batch in checkpoints; set the sampler's seed.

        Without ``randomness.seed`` each start draws a seed, and the
        checkpoint's is loaded after the sampler was built.
        """
        for name, value in zip(_BATCH, self.batch_numbers()):
            self.runner.message_hub.update_info(name, value)
        self._record_images()
        sampler = index_sampler(self.dataloader)
        if (self._iter and getattr(sampler, 'seed', None) is not None
                and not self.runner._randomness_cfg.get('diff_rank_seed')):
            sampler.seed = self.runner.seed

    def _record_images(self) -> None:
        """Store the images in checkpoints; warn if they have changed."""
        dataset, hub = self.dataloader.dataset, self.runner.message_hub
        if isinstance(dataset, IterableDataset):
            return
        source = getattr(dataset, 'source', None)
        now = len(dataset), source.names.checksum() if source else 0
        former = hub.get_info(_IMAGES, now[0]), hub.get_info(_NAMES, now[1])
        hub.update_info(_IMAGES, now[0])
        hub.update_info(_NAMES, now[1])
        if self._iter and now != former:
            count = (f'{now[0]:,} images, but had {former[0]:,}'
                     if now[0] != former[0] else 'images of other names')
            self.runner.logger.warning(
                f'Resumed with other training data: it has {count}. Batches '
                'contain other images, so losses differ from an uninterrupted '
                'run.')

    def _record_validation(self, done: int, end: int) -> None:
        """Store in checkpoints whether validation is pending.

        After resuming, ``PreemptionHook`` runs the pending validation.
        """
        set_validation_pending(
            self.runner, done < end and validation_follows(self.runner, done))


@LOOPS.register_module()
class ResumableEpochLoop(_Resumable, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that resumes within an epoch.

    A run resumed from a checkpoint of any iteration trains on the same batches
    as an uninterrupted run; earlier batches are skipped without loading them.
    If the number of iterations per epoch has changed (data set, batch size,
    number of processes), the run resumes after the same fraction of the epoch.

    See ``EpochBasedTrainLoop`` for the arguments.
    """

    _done = 0  # completed batches of the current epoch

    def run(self):
        """Train."""
        self._prepare()
        epoch, first = self.runner.message_hub.get_info(
            'epoch_start', (self._epoch, self._epoch * len(self.dataloader)))
        if epoch == self._epoch:
            self._done = max(self._iter - first, 0)
        return super().run()

    def move_to_new_length(self) -> bool:
        """Move to the same fraction of an epoch, at an optimizer step.

        Returns:
            bool: Whether the length of epochs has changed.
        """
        hub, length = self.runner.message_hub, len(self.dataloader)
        info = hub.runtime_info
        former = info.get('max_iters', 0) // info.get('max_epochs', 1)
        if not former or former == length:
            return False
        epoch, first = info.get('epoch_start',
                                (self._epoch, self._epoch * former))
        done = self._iter - first if epoch == self._epoch else 0
        done = min(done, former) * length // former
        start = self._epoch * length
        steps = self.runner.optim_wrapper._accumulative_counts
        done -= min((start + done) % steps, done)
        self._iter = start + done
        hub.update_info('epoch_start', (self._epoch, start))
        print_log(
            f'An epoch has {length} iterations, but had {former}: resuming in '
            f'epoch {self._epoch + 1} after {done} iterations.',
            logger='current')
        return True

    def run_epoch(self) -> None:
        """Train for one epoch, or the rest of it."""
        done, self._done = self._done, 0
        runner = self.runner
        self._record_validation(0, 0)
        runner.message_hub.update_info('epoch_start',
                                       (self._epoch, self._iter - done))
        runner.call_hook('before_train_epoch')
        runner.model.train()
        # After the last iteration only hooks are called.
        if done < len(self.dataloader):
            for idx, data_batch in enumerate(self._rest(done), done):
                self.run_iter(idx, data_batch)
        self._record_validation(self._epoch + 1, self._max_epochs)
        runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _rest(self, done: int) -> Iterator:
        # PrefetchHook wraps the loader.
        loader = getattr(self.dataloader, 'loader', self.dataloader)
        if done and not skip_batches(loader, done):
            print_log(
                f'Loading the {done} batches of this epoch that were trained '
                'on: an IterableDataset cannot skip them.',
                logger='current')
            return islice(iter(self.dataloader), done, None)
        return iter(self.dataloader)


class _ResumedBatches(_InfiniteDataloaderIterator):
    """mmengine's infinite iterator without the batches of a stopped run.

    Args:
        loader (DataLoader): The data loader.
        trained (int): Number of batches to skip.
        to_count (int): Number of calls by mmengine 0.10.7 to skip, one per
            iteration.
    """

    def __init__(self, loader: DataLoader, trained: int,
                 to_count: int) -> None:
        super().__init__(loader)
        self._trained = trained
        self._to_count = to_count
        # mmengine 0.10.7 has already requested the first batches.
        self._iterator = None
        if getattr(loader, '_iterator', None) is not None:
            loader._iterator = None

    def skip_iter(self, num_iters: int) -> None:
        """Skip no calls; newer versions of mmengine call this."""
        self._to_count = 0

    def __next__(self) -> Any:
        if self._to_count:
            self._to_count -= 1
            return None
        if self._iterator is None:
            self._begin()
        return super().__next__()

    def _begin(self) -> None:
        loader, left = self._dataloader, self._trained
        sampler = index_sampler(loader)
        if isinstance(sampler, InfiniteSampler):
            sampler.indices = sampler._indices_of_rank()
        elif not isinstance(loader.dataset, IterableDataset):
            self._epoch, left = divmod(left, len(loader))
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self._epoch)
        skipped = skip_batches(loader, left)
        self._iterator = iter(loader)
        if not skipped:
            for _ in range(left):
                super().__next__()


@LOOPS.register_module()
class ResumableIterLoop(_Resumable, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` that skips data without loading it.

    If the batch size or the number of processes has changed, the same number
    of samples is skipped.

    See ``IterBasedTrainLoop`` for the arguments.
    """

    def run(self):
        """Train."""
        former = self.former_batch_numbers()[1]
        self._prepare()
        if self._iter and not getattr(self, 'fast_forward_on_resume', False):
            self.dataloader_iterator = _ResumedBatches(
                self.dataloader,
                self._iter * former // self.batch_numbers()[1], self._iter)
        return super().run()

    def run_iter(self, data_batch) -> None:
        """Iterate one batch.

        Args:
            data_batch (dict): The batch.
        """
        self._record_validation(self._iter + 1, self._max_iters)
        super().run_iter(data_batch)


_RESUMABLE = {
    EpochBasedTrainLoop: ResumableEpochLoop,
    IterBasedTrainLoop: ResumableIterLoop
}


def make_resumable(loop: Any) -> Any:
    """Replace mmengine's training loops by this project's.

    Args:
        loop (dict | BaseLoop): ``train_cfg`` of a runner's config.

    Returns:
        dict | BaseLoop: The config; loops of other types do not change.
    """
    if not isinstance(loop, dict):
        return loop
    loop = dict(loop)
    if 'type' not in loop and 'by_epoch' in loop:
        by_epoch = loop.pop('by_epoch')
        loop['type'] = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    kind = loop.get('type')
    kind = LOOPS.get(kind) if isinstance(kind, str) else kind
    if kind in _RESUMABLE:
        loop['type'] = _RESUMABLE[kind]
    return loop


class _SkipOnce:
    """A sampler that skips its first items in the first iteration.

    Args:
        batches (Sampler): The sampler of indices or of lists of indices.
        count (int): Number of items to skip once.
    """

    def __init__(self, batches: Sampler, count: int) -> None:
        self.batches = batches
        self.count = count

    def __iter__(self) -> Iterator:
        # A generator, since DataLoader may discard an iterator.
        count, self.count = self.count, 0
        yield from islice(self.batches, count, None)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # not set yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)


def skip_batches(loader: DataLoader, count: int) -> bool:
    """Skip batches in the next iteration over a loader, without loading them.

    Samplers of this project skip immediately. Other samplers draw the skipped
    indices, so the following indices do not change.

    Args:
        loader (DataLoader): The data loader, modified in place.
        count (int): Number of batches to skip.

    Returns:
        bool: False for an ``IterableDataset``, which cannot skip.
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
    # DataLoader refuses setattr for samplers.
    vars(loader)[name] = _SkipOnce(getattr(loader, name), count)
    return True


def index_sampler(loader: DataLoader) -> Any:
    """Return the sampler of indices, inside of the batch sampler."""
    inner = getattr(loader.batch_sampler, 'sampler', None)
    return loader.sampler if inner is None else inner
