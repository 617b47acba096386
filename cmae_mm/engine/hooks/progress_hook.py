"""A progress bar of training, below the log."""
from typing import Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...progress import Progress


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show the progress of a training and the time left on a terminal.

    ``ResumableRunner`` registers it by itself. Where standard error is no
    terminal, only the log has these figures.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._progress: Optional[Progress] = None

    def before_train(self, runner) -> None:
        """Show the bar, beginning with the iterations done before."""
        self._progress = Progress(
            runner.max_iters, 'training', 'step', runner.iter,
            enabled=is_main_process(), plain=False)
        self._progress.show_logs_above(runner.logger.handlers)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Count a step."""
        self._progress.update()

    def after_train(self, runner) -> None:
        """Release the terminal."""
        self.close()

    def close(self) -> None:
        """Release the terminal, however training has ended."""
        if self._progress is not None:
            self._progress.close()
