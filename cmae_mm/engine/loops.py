"""Training loops that resume within an epoch."""
import copy
import warnings
from itertools import islice
from typing import Any, Iterator

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmpretrain.registry import LOOPS
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
)

from ..datasets import SeededInfiniteSampler, SeededSampler
from .training_state import note_pending_validation, validation_follows


class _Resumable:
    """The parts that both loops share."""

    def samples_per_iter(self) -> int:
        """Return the number of samples of all processes in an iteration."""
        size = self.dataloader.batch_size or getattr(
            self.dataloader.batch_sampler, 'batch_size', 1)
        return size * get_world_size()

    def samples_per_step(self) -> int:
        """Return the number of samples in an optimizer step."""
        wrapper = self.runner.optim_wrapper
        return self.samples_per_iter() * getattr(
            wrapper, '_accumulative_counts', 1)

    def _note_batch(self) -> int:
        """Store the batch in the message hub, and so in checkpoints.

        Returns:
            int: Samples in an iteration of the run that is resumed, or of
            this one if that is not known.
        """
        hub, size = self.runner.message_hub, self.samples_per_iter()
        former = hub.runtime_info.get('samples_per_iter', size)
        hub.update_info('samples_per_iter', size)
        hub.update_info('samples_per_step', self.samples_per_step())
        return former if self._iter else size

    def _agree_on_seed(self) -> None:
        """Set the sampler's seed to the one of the resumed run.

        Without ``randomness.seed`` each start draws a seed, and the
        checkpoint's is loaded after the sampler was built.
        """
        sampler = index_sampler(self.dataloader)
        if (self._iter and getattr(sampler, 'seed', None) is not None
                and not self.runner._randomness_cfg.get('diff_rank_seed')):
            sampler.seed = self.runner.seed

    def _note_validation(self, done: int, end: int) -> None:
        """Store in checkpoints whether validation is due after them.

        ``PreemptionHook`` runs a validation that was due when the run was
        stopped, so that the best checkpoint is known.

        Args:
            done (int): Number of finished epochs or iterations.
            end (int): Number of epochs or iterations of the whole training.
        """
        note_pending_validation(
            self.runner, done < end and validation_follows(self.runner, done))


@LOOPS.register_module()
class ResumableEpochLoop(_Resumable, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that resumes within an epoch.

    A run that is resumed from a checkpoint of any iteration trains on the same
    batches as an uninterrupted run; earlier batches are skipped without
    loading them. If an epoch has another number of iterations, since the data
    set, the batch or the number of processes have changed, the run resumes
    after the same fraction of the epoch, with the learning rates that the new
    schedule has there.

    See ``EpochBasedTrainLoop`` for the arguments.
    """

    _done = 0  # batches of the current epoch that are already trained

    def run(self):
        """Train."""
        self._note_batch()
        self._agree_on_seed()
        if self._iter:
            self._find_place()
        return super().run()

    def _find_place(self) -> None:
        """Find the place within the epoch to resume at."""
        info = self.runner.message_hub.runtime_info
        length = len(self.dataloader)
        former = length
        if info.get('max_iters') and info.get('max_epochs'):
            former = info['max_iters'] // info['max_epochs'] or length
        epoch, first = info.get('epoch_start',
                                (self._epoch, self._epoch * former))
        done = self._iter - first if epoch == self._epoch else 0
        done = min(max(done, 0), former)
        if former != length:
            done = done * length // former
            self._iter = self._epoch * length + done
            # Back to the first iteration of an optimizer step.
            back = min(
                self._iter % self.runner.optim_wrapper._accumulative_counts,
                done)
            self._iter, done = self._iter - back, done - back
            print_log(
                f'An epoch has {length} iterations, but had {former}: resuming'
                f' in epoch {self._epoch + 1} after {done} of them.',
                logger='current')
            self.runner.optim_wrapper.initialize_count_status(
                self.runner.model, self._iter, self._max_iters)
            self._replay_schedules()
        self._done = done

    def _replay_schedules(self) -> None:
        """Set learning rates by the config's schedule at this iteration."""
        runner = self.runner
        if not runner.param_schedulers or isinstance(runner.param_schedulers,
                                                     dict):
            return
        for group in runner.optim_wrapper.param_groups:
            for name in [n for n in group if n.startswith('initial_')]:
                group[name[len('initial_'):]] = group[name]
        runner.param_schedulers = runner.build_param_scheduler(
            copy.deepcopy(runner.cfg.param_scheduler))
        with warnings.catch_warnings():
            # About steps of a schedule before the optimizer's.
            warnings.simplefilter('ignore')
            for done in range(1, self._iter + 1):
                for scheduler in runner.param_schedulers:
                    if not scheduler.by_epoch or (
                            done % len(self.dataloader) == 0):
                        scheduler.step()

    def run_epoch(self) -> None:
        """Iterate over one epoch, or over the rest of it."""
        done, self._done = self._done, 0
        runner = self.runner
        self._note_validation(0, 0)
        runner.message_hub.update_info('epoch_start',
                                       (self._epoch, self._iter - done))
        runner.call_hook('before_train_epoch')
        runner.model.train()
        # After the last iteration only the hooks are left.
        if done < len(self.dataloader):
            for idx, data_batch in enumerate(self._rest(done), done):
                self.run_iter(idx, data_batch)
        self._note_validation(self._epoch + 1, self._max_epochs)
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
    """mmengine's infinite iterator, after the batches of a stopped run.

    Args:
        loader (DataLoader): The data loader.
        trained (int): Number of batches to skip.
        to_count (int): Number of calls by which mmengine 0.10.7 skips, one
            for each iteration.
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

    With another batch or number of processes than before, the same number of
    samples is skipped.

    See ``IterBasedTrainLoop`` for the arguments.
    """

    def run(self):
        """Train."""
        former = self._note_batch()
        self._agree_on_seed()
        if self._iter and not getattr(self, 'fast_forward_on_resume', False):
            size = self.runner.message_hub.get_info('samples_per_iter')
            self.dataloader_iterator = _ResumedBatches(
                self.dataloader, self._iter * former // size, self._iter)
        return super().run()

    def run_iter(self, data_batch) -> None:
        """Iterate one batch.

        Args:
            data_batch (dict): The batch.
        """
        self._note_validation(self._iter + 1, self._max_iters)
        super().run_iter(data_batch)


_RESUMABLE = {
    EpochBasedTrainLoop: ResumableEpochLoop,
    IterBasedTrainLoop: ResumableIterLoop
}


def resumable(loop: Any) -> Any:
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
    """A sampler without its first items, in the first iteration over it.

    Args:
        batches (Sampler): The sampler of indices or of lists of indices.
        count (int): Number of items to skip once.
    """

    def __init__(self, batches: Sampler, count: int) -> None:
        self.batches = batches
        self.count = count

    def __iter__(self) -> Iterator:
        # A generator, since DataLoader may drop an iterator that it made.
        count, self.count = self.count, 0
        yield from islice(self.batches, count, None)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # not set yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)


def skip_batches(loader: DataLoader, count: int) -> bool:
    """Skip batches in the next iteration over a loader, without loading them.

    Samplers of this project skip in no time. Other samplers draw the skipped
    indices, so that the following ones do not change.

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
