"""Sharding of models by mmengine's strategies."""
from typing import Any, List, Optional, Union

import torch.distributed as dist
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.registry import STRATEGIES
from torch import nn

from .activation_checkpointing import (
    checkpoint_activations,
    transformer_layers,
)
from .sharding import load_whole_state, shard_optimizer_state, whole

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        fully_shard,
        register_fsdp_forward_method,
    )
except ImportError:  # before torch 2.6
    fully_shard = None


@STRATEGIES.register_module()
class FullyShardStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` by torch's ``fully_shard`` (FSDP2).

    Each transformer layer is a unit; all else of the model is one more. Each
    parameter is shared out by its rows, so that the online branch's and the
    target's lie on the same processes, and the target's moving average is
    computed on each process's part by itself. (In FSDP1, which
    ``FSDPStrategy`` wraps, parameters of a unit are one after the other in one
    vector, and the target's, which has no final norm, do not lie where the
    online branch's do.) Autocasting, SyncBN and activation checkpointing work
    as without sharding, and checkpoints are those of a model in one piece: a
    run may go on with sharding or without.

    Args:
        sync_bn (str, optional): See ``DDPStrategy``. Defaults to None.
        reshard_after_forward (bool): Whether a layer's gathered parameters
            are dropped between forward and backward pass, which saves memory
            for one more gathering of each. Defaults to True.
        activation_checkpointing (bool | str | list, optional): See
            ``checkpoint_activations``. ``ResumableFlexibleRunner`` takes it
            from the config. Defaults to None.
        **kwargs: Other arguments of ``FSDPStrategy``.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If there is one process alone, without a launcher.
    """

    def __init__(self,
                 *,
                 sync_bn: Optional[str] = None,
                 reshard_after_forward: bool = True,
                 activation_checkpointing: Union[None, bool, str,
                                                 List[str]] = None,
                 **kwargs: Any) -> None:
        if fully_shard is None:
            raise ImportError(
                'FullyShardStrategy needs torch 2.6 or newer; update torch, '
                'or train the config that it is based on')
        super().__init__(state_dict_cfg='full', **kwargs)
        self.sync_bn = sync_bn
        self.reshard_after_forward = reshard_after_forward
        self.activation_checkpointing = activation_checkpointing
        if not dist.is_initialized():
            raise ValueError(
                'FullyShardStrategy shares a model out over processes; start '
                'them by tools/dist_train.sh or slurm_train.sh')

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = self.convert_model(model.to(get_device()))
        if self.activation_checkpointing:
            checkpoint_activations(model, self.activation_checkpointing)
        mesh = init_device_mesh(
            get_device().split(':')[0], (dist.get_world_size(), ))
        for layer in transformer_layers(model).values():
            fully_shard(layer, mesh=mesh,
                        reshard_after_forward=self.reshard_after_forward)
        fully_shard(model, mesh=mesh)
        for name in ('extract_feat', 'predict'):
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)
        return model

    def _scale_lr(self) -> None:
        """Scale the learning rate to the batch of an optimizer step."""
        batch = self.dispatch_kwargs.get('train_micro_batch_size_per_gpu')
        if batch is not None:
            self.dispatch_kwargs['train_micro_batch_size_per_gpu'] = (
                batch * self.optim_wrapper._accumulative_counts)
        super()._scale_lr()
        self.dispatch_kwargs['train_micro_batch_size_per_gpu'] = batch

    def model_state_dict(self) -> dict:
        """Gather the model's state, which rank 0 alone gets."""
        return whole(self.model.state_dict(), keep=self.rank == 0)

    def optim_state_dict(self) -> dict:
        """Gather the optimizer's state, which rank 0 alone gets."""
        return whole(self.optim_wrapper.state_dict(), keep=self.rank == 0)

    def load_model_state_dict(self, state_dict: dict, **kwargs: Any) -> None:
        """Load whole tensors, which each process has."""
        load_whole_state(self.model, state_dict)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load an optimizer's state, which each process has."""
        self.optim_wrapper.load_state_dict(
            shard_optimizer_state(self.optim_wrapper.optimizer, state_dict))
