"""Training loops that go on in the middle of an epoch."""
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
from torch.utils.data import DataLoader, IterableDataset

from .pending_validation import note_pending_validation, validation_follows
from .skipping import index_sampler, skip_batches


class _Resumable:
    """What both loops do before they go on with a stopped run."""

    def _note_batch(self) -> int:
        """Keep the size of a step in checkpoints, and give the former one.

        Returns:
            int: Samples of all processes in an iteration of the run that is
            gone on with, or of this one if that is not known.
        """
        hub = self.runner.message_hub
        size = self.dataloader.batch_size or getattr(
            self.dataloader.batch_sampler, 'batch_size', 1)
        size *= get_world_size()
        former = hub.runtime_info.get('samples_per_iter', size)
        hub.update_info('samples_per_iter', size)
        return former if self._iter else size

    def _agree_on_seed(self) -> None:
        """Shuffle as the run that is gone on with did.

        Without ``randomness.seed`` each start draws a seed; a resumed run
        takes the checkpoint's, but after its sampler was made.
        """
        sampler = index_sampler(self.dataloader)
        if (self._iter and getattr(sampler, 'seed', None) is not None
                and not self.runner._randomness_cfg.get('diff_rank_seed')):
            sampler.seed = self.runner.seed

    def _note_validation(self, done: int, end: int) -> None:
        """Let checkpoints say that validation is to follow them.

        A run that was killed before it is over then makes up for it, so that
        the best checkpoint is known; ``PreemptionHook`` sees to that.

        Args:
            done (int): Number of finished epochs or iterations.
            end (int): Number of epochs or iterations of the whole training.
                What is saved after the last one is of a run that has ended.
        """
        note_pending_validation(
            self.runner, done < end and validation_follows(self.runner, done))


@LOOPS.register_module()
class ResumableEpochLoop(_Resumable, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that goes on within an epoch.

    A run that is resumed from a checkpoint of any iteration trains on the
    batches that the stopped run had before it, none twice and none left out;
    batches before are skipped without loading them. Where the data set, the
    batch or the number of processes have changed, and an epoch has another
    number of iterations, it goes on after the same share of the epoch, and
    learning rates are those of the new schedule at that place.

    See ``EpochBasedTrainLoop`` for the arguments.
    """

    _done = 0  # batches of the current epoch that the stopped run had

    def run(self):
        """Train."""
        self._note_batch()
        self._agree_on_seed()
        if self._iter:
            self._find_place()
        return super().run()

    def _find_place(self) -> None:
        """Work out where in which epoch to go on."""
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
            # A step's gradients are gathered from its beginning.
            back = min(
                self._iter % self.runner.optim_wrapper._accumulative_counts,
                done)
            self._iter, done = self._iter - back, done - back
            print_log(
                f'An epoch has {length} iterations, but had {former}: going '
                f'on in epoch {self._epoch + 1} after {done} of them.',
                logger='current')
            self.runner.optim_wrapper.initialize_count_status(
                self.runner.model, self._iter, self._max_iters)
            self._replay_schedules()
        self._done = done

    def _replay_schedules(self) -> None:
        """Set learning rates to what the config gives at this iteration."""
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
            # torch's, of stepping a schedule before the optimizer.
            warnings.simplefilter('ignore')
            for done in range(1, self._iter + 1):
                for scheduler in runner.param_schedulers:
                    if not scheduler.by_epoch or (
                            done % len(self.dataloader) == 0):
                        scheduler.step()

    def run_epoch(self) -> None:
        """Iterate one epoch, or what is left of it."""
        done, self._done = self._done, 0
        runner = self.runner
        self._note_validation(0, 0)
        runner.message_hub.update_info('epoch_start',
                                       (self._epoch, self._iter - done))
        runner.call_hook('before_train_epoch')
        runner.model.train()
        # After its last iteration only what follows an epoch is left.
        if done < len(self.dataloader):
            for idx, data_batch in enumerate(self._rest(done), done):
                self.run_iter(idx, data_batch)
        self._note_validation(self._epoch + 1, self._max_epochs)
        runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _rest(self, done: int) -> Iterator:
        # PrefetchHook's loader has the true one inside.
        loader = getattr(self.dataloader, 'loader', self.dataloader)
        if done and not skip_batches(loader, done):
            print_log(
                f'Loading the {done} batches of this epoch that have been '
                'trained on, since a stream of data cannot skip them.',
                logger='current')
            return islice(iter(self.dataloader), done, None)
        return iter(self.dataloader)


class _ResumedBatches(_InfiniteDataloaderIterator):
    """mmengine's endless batches, after those of a stopped run.

    Args:
        loader (DataLoader): The data loader that gives the batches.
        trained (int): Number of batches to leave out.
        to_count (int): Number of calls with which the loop counts them off;
            mmengine 0.10.7 makes one for each of its iterations.
    """

    def __init__(self, loader: DataLoader, trained: int,
                 to_count: int) -> None:
        super().__init__(loader)
        self._trained = trained
        self._to_count = to_count
        # mmengine 0.10.7 has asked for the first batches already.
        self._iterator = None
        if getattr(loader, '_iterator', None) is not None:
            loader._iterator = None

    def skip_iter(self, num_iters: int) -> None:
        """Skip nothing more; what newer versions call."""
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

    With another batch or number of processes than the run that is gone on
    with, as many samples are skipped as that has had.

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
    """Put this project's loops in the place of mmengine's.

    Args:
        loop (dict | BaseLoop): ``train_cfg`` of a runner's config.

    Returns:
        dict | BaseLoop: The same for a loop of another type.
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
