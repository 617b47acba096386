"""mmengine's runner, made to lose nothing and to load nothing by half."""
from typing import Optional

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import RUNNERS

from ..models import CMAE
from .activation_checkpointing import checkpoint_activations
from .compilation import compile_parts
from .device import unwrapped_model
from .learning_rate import scale_learning_rate
from .optimizers import skipping_steps
from .resuming import Resuming


@RUNNERS.register_module()
class ResumableRunner(Resuming, Runner):
    """mmengine's ``Runner`` that the commands of this project start.

    Other tools take it where a config says ``runner_type='ResumableRunner'``.
    See ``Resuming`` for what it adds.
    """

    def build_optim_wrapper(self, optim_wrapper):
        """Build an optimizer wrapper that skips steps that are not finite.

        See ``Runner.build_optim_wrapper``; mmengine's plain ``OptimWrapper``
        is replaced by ``AutoAmpOptimWrapper`` in float32.
        """
        return super().build_optim_wrapper(skipping_steps(optim_wrapper))

    def scale_lr(self,
                 optim_wrapper: OptimWrapper,
                 auto_scale_lr: Optional[dict] = None) -> None:
        """Scale the learning rate to the batch of an optimizer step.

        mmengine's leaves gradient accumulation out.

        Args:
            optim_wrapper (OptimWrapper): The optimizer wrapper, whose
                parameter groups are changed.
            auto_scale_lr (dict, optional): ``base_batch_size``, the batch
                that the rate is for, and ``enable``. Defaults to None.
        """
        scale_learning_rate(optim_wrapper, auto_scale_lr,
                            self.train_dataloader.batch_size, self.world_size,
                            self.logger)

    def _init_model_weights(self) -> None:
        super()._init_model_weights()
        # What mmengine's train() would turn on next.
        modules = self.cfg.pop('activation_checkpointing', None)
        if modules:
            count = checkpoint_activations(unwrapped_model(self), modules)
            self.logger.info(f'Activations of {count} modules are computed '
                             'again in the backward pass, to save memory.')

    def _maybe_compile(self, target: str) -> None:
        """Compile a CMAE's training step by its parts, others as a whole.

        mmengine would compile all of ``train_step``, which a CMAE's checks
        and collectives break into many graphs.
        """
        model = unwrapped_model(self)
        options = self.cfg.get('compile')
        if target != 'train_step' or not isinstance(model, CMAE) or (
                options in (None, False)):
            return super()._maybe_compile(target)
        compile_parts(model, **({} if options is True else options))
        self.logger.info('The training step is compiled: the first iteration '
                         'takes a minute or more.')
