"""mmengine's distributed strategy, for what ranks share out."""
import time
from typing import Any, Callable, Dict, Optional

import mmengine
from mmengine._strategy import DDPStrategy
from mmengine.dist import is_main_process
from mmengine.runner.checkpoint import save_checkpoint
from mmengine.utils import get_git_hash
from torch import nn

from .activation_checkpointing import checkpoint_activations
from .learning_rate import scale_learning_rate
from .sharding import together


class SharingStrategy(DDPStrategy):
    """What the strategies of ``ShardedRunner`` have in common.

    Checkpoints are those of a run that is not sharded, written by rank 0:
    each kind of run goes on with the other's, on any number of ranks.

    Args:
        activation_checkpointing (bool | str | List[str]): See
            :func:`checkpoint_activations`. Defaults to False.
        **kwargs: Arguments of ``DDPStrategy``, such as ``sync_bn``.

    Raises:
        ValueError: If there is a ``model_wrapper``.
    """

    def __init__(self, *, activation_checkpointing: Any = False,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.model_wrapper is not None:
            raise ValueError(
                f'{type(self).__name__} wraps no model; leave '
                'strategy.model_wrapper out, which is of FSDPStrategy')
        self.activation_checkpointing = activation_checkpointing
        # Set by the runner: what reads a checkpoint into the model, and what
        # else it says of the one to be saved.
        self.read: Optional[Callable] = None
        self.saving: Dict[str, Any] = {}

    def convert_model(self, model: nn.Module) -> nn.Module:
        """Change a model's layers as settings ask for.

        Args:
            model (nn.Module): The model, whose layers may be replaced.

        Returns:
            nn.Module: The model.
        """
        model = super().convert_model(model)
        if self.activation_checkpointing:
            checkpoint_activations(model, self.activation_checkpointing)
        return model

    def after_loading(self) -> None:
        """Take note that the runner has loaded the model's parameters."""

    def _scale_lr(self) -> None:
        scale_learning_rate(
            self.optim_wrapper, self._auto_scale_lr,
            self.dispatch_kwargs['train_micro_batch_size_per_gpu'],
            self.world_size, self.logger)

    def save_checkpoint(self,
                        filename: str,
                        *,
                        save_optimizer: bool = True,
                        save_param_scheduler: bool = True,
                        extra_ckpt: Optional[dict] = None,
                        callback: Optional[Callable] = None) -> None:
        """Save a checkpoint, whole, by rank 0; all ranks must take part.

        See ``DDPStrategy.save_checkpoint``.
        """
        checkpoint = dict(extra_ckpt or {})
        checkpoint['state_dict'] = together(self.model.state_dict())
        if save_optimizer:
            checkpoint['optimizer'] = together(self.optim_wrapper.state_dict())
        if not is_main_process():
            return
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        checkpoint['meta'] = dict(
            checkpoint.get('meta', {}),
            seed=self.seed,
            time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
            mmengine_version=mmengine.__version__ + get_git_hash(),
            **self.saving.get('meta', {}))
        if callback is not None:
            callback(checkpoint)
        save_checkpoint(checkpoint, filename,
                        backend_args=self.saving.get('backend_args'))

    def load_checkpoint(self, filename: str, **kwargs: Any) -> dict:
        """Load a checkpoint by the runner, which looks at it first.

        Args:
            filename (str): The file.
            **kwargs: Not used.

        Returns:
            dict: The checkpoint.
        """
        # In the memory of the machine: it is not shared out.
        return self.read(filename, map_location='cpu')
