"""A bar below the log, where a person watches."""
import sys
from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show how far a training is, and the time left, on a terminal.

    It needs no line in a config: ``ResumableRunner`` has it. Where standard
    error is no terminal, the lines of the log are all there is.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._bar: Optional[tqdm] = None
        self._redirected: Any = None

    def before_train(self, runner) -> None:
        """Begin, at what was trained before."""
        if not is_main_process() or not sys.stderr.isatty():
            return
        # Log lines then come above the bar.
        self._redirected = logging_redirect_tqdm([runner.logger])
        self._redirected.__enter__()
        self._bar = tqdm(total=runner.max_iters, initial=runner.iter,
                         unit='step', desc='training', file=sys.stderr)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Note a step."""
        if self._bar is not None:
            self._bar.update(1)

    def after_train(self, runner) -> None:
        """End."""
        self.close()

    def close(self) -> None:
        """Take the bar away, whatever has ended the training."""
        if self._bar is not None:
            self._bar.close()
            self._redirected.__exit__(None, None, None)
            self._bar = None
