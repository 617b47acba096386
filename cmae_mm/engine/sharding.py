"""Sharding of a model over ranks with FSDP2, and its whole states."""
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..models.utils import is_sharded
from .activation_checkpointing import transformer_layers

try:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import FSDPModule, fully_shard
except ImportError:  # before torch 2.6
    fully_shard = None


def check_can_shard() -> None:
    """Check torch's version and that a launcher started this process.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If no launcher started this process.
    """
    if fully_shard is None:
        raise ImportError(
            'sharding needs torch 2.6 or newer, but this is '
            f'{torch.__version__}; train with the config without fsdp in its '
            'name, or update torch')
    if not dist.is_initialized():
        raise ValueError(
            'ShardedRunner shards a model over ranks, but this is one '
            'process; start it with tools/dist_train.sh CONFIG GPUS')


def shard(model: nn.Module, reshard_after_forward: bool = True) -> None:
    """Shard each parameter of a model over all ranks, in place.

    Each transformer layer is a unit that is gathered during its computation;
    the rest of the model is another unit. Names and classes do not change.
    Parameters are sharded by rows, so online and target parameters, which have
    the same shapes, are sharded alike.

    Args:
        model (nn.Module): The model, the same on all ranks.
        reshard_after_forward (bool): Whether to free a layer's gathered
            parameters between forward and backward pass. Defaults to True.
    """
    mesh = dist.device_mesh.init_device_mesh(
        get_device().split(':')[0], (get_world_size(), ))
    for layer in transformer_layers(model).values():
        fully_shard(layer, mesh=mesh,
                    reshard_after_forward=reshard_after_forward)
    # The rest is needed at once in the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    model.reshards_after_forward = reshard_after_forward


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Gather all parameters for work outside of training steps.

    All ranks must run the same modules in this context, since torch prefetches
    for the next backward pass in the order of the last forward pass. Unsharded
    models do not change.

    Args:
        model (nn.Module): The model, on all ranks.
    """
    units = []
    if is_sharded(model):
        units = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(
                unit is not model and model.reshards_after_forward,
                recurse=False)


def whole_model_state(model: nn.Module) -> 'OrderedDict[str, Tensor]':
    """Gather a sharded model's state on rank 0; all ranks must call it.

    Args:
        model (nn.Module): The model.

    Returns:
        OrderedDict[str, Tensor]: On CPUs; empty on other ranks.
    """
    return OrderedDict(get_model_state_dict(model, options=StateDictOptions(
        full_state_dict=True, cpu_offload=True)))


def load_model_state(model: nn.Module, state: Dict[str, Tensor]) -> None:
    """Load a whole state dict into a model, sharded or not.

    Args:
        model (nn.Module): The model, on all ranks.
        state (Dict[str, Tensor]): A state dict that fits it.
    """
    if is_sharded(model):
        set_model_state_dict(model, state, options=StateDictOptions(
            full_state_dict=True, strict=False))
    else:
        model.load_state_dict(state, strict=False)


def whole_optimizer_state(model: nn.Module, wrapper: Any) -> Dict[str, Any]:
    """Gather a sharded optimizer's state on rank 0; all ranks must call it.

    Args:
        model (nn.Module): The model.
        wrapper (OptimWrapper): The optimizer wrapper.

    Returns:
        Dict[str, Any]: State of an unsharded optimizer, on the CPU; without
        tensors on other ranks.
    """
    whole = wrapper.state_dict()
    if whole['state']:  # otherwise torch would create it with a step
        state = get_optimizer_state_dict(
            model, wrapper.optimizer, options=StateDictOptions(
                full_state_dict=True, cpu_offload=True)).get('state', {})
        whole['state'] = {
            number: state[name]
            for number, name in enumerate(_names(model, wrapper))
            if name in state}
    return whole


def load_optimizer_state(model: nn.Module, wrapper: Any,
                         state: Dict[str, Any]) -> None:
    """Load a whole state into a sharded optimizer, on all ranks.

    Args:
        model (nn.Module): The model.
        wrapper (OptimWrapper): The optimizer wrapper.
        state (Dict[str, Any]): A state of an unsharded optimizer, or of
            :func:`whole_optimizer_state`.
    """
    if state['state']:
        names = _names(model, wrapper)
        by_name = dict(
            state={names[n]: dict(v) for n, v in state['state'].items()},
            param_groups=[
                dict(group, params=[names[n] for n in group['params']])
                for group in state['param_groups']])
        set_optimizer_state_dict(
            model, wrapper.optimizer, by_name, options=StateDictOptions(
                full_state_dict=True))
        state = dict(state, state=wrapper.optimizer.state_dict()['state'])
    wrapper.load_state_dict(state)


def _names(model: nn.Module, wrapper: Any) -> list:
    """List the names of an optimizer's parameters in its order."""
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for group in wrapper.optimizer.param_groups
            for p in group['params']]
