"""mmengine's distributed strategy with torch's ``fully_shard`` (FSDP2)."""
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
from .sharding import (
    check_can_shard,
    load_optimizer_state,
    shard,
    whole_model_state,
    whole_optimizer_state,
)


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Shard parameters, gradients and optimizer state over all ranks.

    The strategy of ``ShardedRunner``. It shards each parameter by its rows
    (FSDP2), the target's like the online branch's, so that the moving average
    is exact and needs no communication. mmengine's ``FSDPStrategy`` (FSDP1)
    flattens a unit's parameters into one tensor and cuts that into equal
    pieces: a rank would hold different parts of the two branches.

    Rank 0 writes whole checkpoints, the same as an unsharded run. Sharded and
    unsharded runs can resume from each other, on any number of ranks.

    Args:
        reshard_after_forward (bool): Whether to free the parameters of a layer
            between its forward and its backward pass. False needs more memory
            and less communication: gradients and optimizer state remain
            sharded, as in ZeRO 2. Defaults to True.
        activation_checkpointing (bool | str | List[str]): See
            :func:`checkpoint_activations`. Defaults to False.
        **kwargs: Arguments of ``DDPStrategy``, such as ``sync_bn``.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If no launcher has started this process, there is a
            ``model_wrapper``, or training is in float16.
    """

    def __init__(self, *, reshard_after_forward: bool = True,
                 activation_checkpointing: Any = False,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.model_wrapper is not None:
            raise ValueError(
                'FullyShardStrategy does not wrap the model: remove '
                'strategy.model_wrapper, a setting of FSDPStrategy')
        check_can_shard()
        self.reshard_after_forward = reshard_after_forward
        self.activation_checkpointing = activation_checkpointing
        # Set by the runner: the function that loads a checkpoint into the
        # model, and further content of the next checkpoint.
        self.read: Optional[Callable] = None
        self.saving: Dict[str, Any] = {}

    def convert_model(self, model: nn.Module) -> nn.Module:
        """Convert layers and turn on activation checkpointing.

        Args:
            model (nn.Module): The model, modified in place.

        Returns:
            nn.Module: The model.
        """
        model = super().convert_model(model)
        if self.activation_checkpointing:
            checkpoint_activations(model, self.activation_checkpointing)
        return model

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, BaseDataPreprocessor):
                module.to(get_device())
        model = self.convert_model(model)
        shard(model, self.reshard_after_forward)
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
        """Save a whole checkpoint on rank 0; all ranks must call it.

        See ``DDPStrategy.save_checkpoint``.
        """
        checkpoint = dict(extra_ckpt or {})
        checkpoint['state_dict'] = whole_model_state(self.model)
        if save_optimizer:
            checkpoint['optimizer'] = whole_optimizer_state(
                self.model, self.optim_wrapper)
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
        """Load a checkpoint with the runner's checks.

        Args:
            filename (str): The file.
            **kwargs: Not used.

        Returns:
            dict: The checkpoint.
        """
        # In host memory, since it is whole.
        return self.read(filename, map_location='cpu')

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole optimizer state; all ranks must call it."""
        load_optimizer_state(self.model, self.optim_wrapper, state_dict)
