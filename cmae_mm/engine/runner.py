"""mmengine's runner, made to lose nothing and to load nothing by half."""
from typing import Optional

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import RUNNERS

from .activation_checkpointing import checkpoint_activations
from .run_checks import check_one_batch, check_target_moves


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's ``Runner`` that the commands of this project start.

    Other tools take it where a config says ``runner_type='ResumableRunner'``.
    """

    def build_train_loop(self, loop):
        """Build a loop, and check that it can train.

        See ``Runner.build_train_loop``.

        Raises:
            ValueError: If the data do not fill a batch, or nothing moves a
                CMAE's target.
        """
        loop = super().build_train_loop(loop)
        check_one_batch(loop.dataloader)
        check_target_moves(self)
        return loop

    def scale_lr(self,
                 optim_wrapper: OptimWrapper,
                 auto_scale_lr: Optional[dict] = None) -> None:
        """Scale the learning rate to the batch of an optimizer step.

        mmengine's leaves gradient accumulation out.

        Args:
            optim_wrapper (OptimWrapper): Its parameter groups are changed.
            auto_scale_lr (dict, optional): ``base_batch_size``, the batch
                that the rate is for, and ``enable``. Defaults to None.
        """
        if not auto_scale_lr or not auto_scale_lr.get('enable', False):
            return
        batch = self.train_dataloader.batch_size
        accumulated = optim_wrapper._accumulative_counts
        total = batch * self.world_size * accumulated
        base = auto_scale_lr['base_batch_size']
        self.logger.info(
            f'Learning rates are multiplied by {total / base:g}: {batch} '
            f'images on {self.world_size} process(es), {accumulated} batches '
            f'a step, are {total} where the config is for {base}.')
        for group in optim_wrapper.optimizer.param_groups:
            group['lr'] *= total / base

    def _init_model_weights(self) -> None:
        super()._init_model_weights()
        # What mmengine's train() would turn on next.
        modules = self.cfg.pop('activation_checkpointing', None)
        if modules:
            model = self.model
            checkpoint_activations(
                model.module if is_model_wrapper(model) else model, modules)
            self.logger.info(f'Activations of {modules} are computed again in '
                             'the backward pass, to save memory.')
