"""mmengine's distributed strategy, with a model that ranks share out."""
import time
from typing import Any, Callable, Dict, Optional

import mmengine
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.model import BaseDataPreprocessor
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES
from mmengine.runner.checkpoint import save_checkpoint
from mmengine.utils import get_git_hash
from torch import nn

from .activation_checkpointing import checkpoint_activations
from .learning_rate import scale_learning_rate
from .optimizers import skipping_steps
from .sharding import check_can_shard, load_optimizer, shard, together


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Shares parameters, gradients and optimizer state out between ranks.

    In the place of mmengine's ``FSDPStrategy``, by torch's ``fully_shard``
    (FSDP2). The former flattens what a unit holds into one tensor, of which
    ranks get equal pieces: a rank would have other parts of an online
    parameter than of the target's. This one shares out each parameter by its
    rows, the target as the online branch, so that the moving average needs no
    communication and is exact.

    Checkpoints are those of a run that is not sharded, written by rank 0:
    each kind of run goes on with the other's, on any number of ranks. It is
    ``ShardedRunner``'s.

    Args:
        activation_checkpointing (bool | str | List[str]): See
            :func:`checkpoint_activations`. Defaults to False.
        **kwargs: Arguments of ``DDPStrategy``, such as ``sync_bn``.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If no launcher has started this process, there is a
            ``model_wrapper``, or training is in float16.
    """

    def __init__(self, *, activation_checkpointing: Any = False,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_can_shard()
        if self.model_wrapper is not None:
            raise ValueError(
                'FullyShardStrategy wraps no model; leave '
                'strategy.model_wrapper out, which is of FSDPStrategy')
        self.activation_checkpointing = activation_checkpointing
        # Set by the runner: what reads a checkpoint into the model, and what
        # else it says of the one to be saved.
        self.read: Optional[Callable] = None
        self.saving: Dict[str, Any] = {}

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, BaseDataPreprocessor):
                module.to(get_device())
        model = self.convert_model(model)
        if self.activation_checkpointing:
            checkpoint_activations(model, self.activation_checkpointing)
        shard(model)
        return model

    def build_optim_wrapper(self, optim_wrapper: Any,
                            model: Optional[nn.Module] = None
                            ) -> BaseOptimWrapper:
        """Build an optimizer wrapper, see ``DDPStrategy``.

        Raises:
            ValueError: If it trains in float16.
        """
        built = super().build_optim_wrapper(
            skipping_steps(optim_wrapper), model)
        scaler = getattr(built, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            raise ValueError(
                'FullyShardStrategy has no loss scaler for float16; set '
                "optim_wrapper.dtype='bfloat16' or 'float32'")
        return built

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

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole optimizer state; all ranks must take part."""
        load_optimizer(self.optim_wrapper, state_dict)
