"""Ends a job of which a rank hangs."""
from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ..watchdog import Watchdog


@HOOKS.register_module()
class WatchdogHook(Hook):
    """End a job of several ranks when none has got on for some time.

    A rank that dies ends the others at once. One that hangs, on a disk that
    does not answer, in a lock, on a machine that is gone, lets all others
    wait. Each rank watches; after ``timeout`` seconds in which its training
    has not come to the next batch, step, or validated batch, it says which
    rank hangs and where, and ends with status 69.

    It needs no line in a config: the runners of this project have it. What
    takes longer between two batches, as compiling or evaluating by k-NN may,
    needs a larger ``timeout``.

    Args:
        timeout (float): Number of seconds. Defaults to 1800.

    Raises:
        ValueError: If it is not positive.
    """

    priority = 'VERY_HIGH'

    def __init__(self, timeout: float = 1800.) -> None:
        if timeout <= 0:
            raise ValueError('timeout must be a number of seconds above 0, '
                             f'but got {timeout}')
        self.timeout = timeout
        self.watchdog = Watchdog(timeout)

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Note that there is a batch."""
        self.watchdog.note(
            f'iteration {runner.iter + 1}', 2 * runner.iter + 1)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Note that a step is made."""
        self.watchdog.note(
            f'the hooks after iteration {runner.iter + 1}, or loading the '
            'next batch', 2 * runner.iter + 2)

    def before_val_iter(self,
                        runner,
                        batch_idx: int,
                        data_batch: Optional[dict] = None) -> None:
        """Note that there is a batch to validate."""
        self.watchdog.note(f'batch {batch_idx + 1} of validation')
