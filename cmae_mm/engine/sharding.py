"""Sharing a model's state out between ranks, and bringing it together."""
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Iterator

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from torch import Tensor, nn

from ..models.utils import is_sharded
from .activation_checkpointing import transformer_layers

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import distribute_tensor
except ImportError:  # before torch 2.6
    fully_shard = None


def check_can_shard() -> None:
    """Check that torch and the start of this process let ranks share.

    Raises:
        ImportError: If torch is too old.
        ValueError: If no launcher has started this process.
    """
    if fully_shard is None:
        raise ImportError(
            'sharing a model out between ranks needs torch 2.6 or newer, but '
            f'this is {torch.__version__}; train with the config without fsdp '
            'in its name, or update torch')
    if not dist.is_initialized():
        raise ValueError(
            'FullyShardStrategy shares a model out between ranks, but this is '
            'one process alone; start it with tools/dist_train.sh CONFIG GPUS')


def shard(model: nn.Module, reshard_after_forward: bool = True) -> None:
    """Shard each parameter of a model over all ranks, in place.

    Each transformer layer is a unit that is gathered while it computes; the
    rest of the model is one more. Names and classes do not change. Parameters
    are sharded by their rows, so that online and target parameters, which have
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
    """Bring all parameters together, for other use than a training step.

    All ranks must compute with the same modules in it: what torch prefetches
    in the next backward pass follows from what was computed before. Where
    nothing is shared out nothing is done.

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


def together(value: Any) -> Any:
    """Bring what is shared out together on rank 0; all ranks must ask.

    Args:
        value (Any): A tensor, or dicts and lists of them.

    Returns:
        Any: The same on CPUs on rank 0; elsewhere tensors that are shared out
        are left empty.
    """
    if isinstance(value, dict):
        made = OrderedDict() if isinstance(value, OrderedDict) else {}
        made.update((k, together(v)) for k, v in value.items())
        if hasattr(value, '_metadata'):
            made._metadata = value._metadata
        return made
    if isinstance(value, (list, tuple)):
        return type(value)(together(v) for v in value)
    if not isinstance(value, Tensor):
        return value
    if hasattr(value, 'full_tensor'):
        value = value.full_tensor()  # asks all ranks
        if not is_main_process():
            return value.new_empty(0, device='cpu')
    return value.cpu()


def shared_like(value: Tensor, reference: Tensor) -> Tensor:
    """Share a whole tensor out as another one is; rank 0's is taken.

    Args:
        value (Tensor): The tensor, on all ranks.
        reference (Tensor): One of its shape.

    Returns:
        Tensor: This rank's share, or the value where the reference is plain.
    """
    if hasattr(value, 'to_local') or not hasattr(reference, 'to_local'):
        return value
    return distribute_tensor(
        value, reference.device_mesh, reference.placements)


def load_into(model: nn.Module, state: 'OrderedDict[str, Tensor]') -> None:
    """Load a whole state dict into a model, shared out or not.

    Args:
        model (nn.Module): The model, on all ranks.
        state (OrderedDict[str, Tensor]): What fits it.
    """
    if is_sharded(model):
        own = model.state_dict()
        shares = OrderedDict(
            (k, shared_like(v, own[k])) for k, v in state.items())
        if hasattr(state, '_metadata'):
            shares._metadata = state._metadata
        state = shares
    model.load_state_dict(state, strict=False)


def load_optimizer(wrapper: Any, state: dict) -> None:
    """Load a whole optimizer state where parameters are shared out.

    Args:
        wrapper (OptimWrapper): The optimizer wrapper, on all ranks.
        state (dict): What an unsharded run, or :func:`together`, has saved.
    """
    parameters = [p for g in wrapper.optimizer.param_groups
                  for p in g['params']]
    shares = {}
    for number, entries in state['state'].items():
        parameter = parameters[number]
        shares[number] = {
            name: shared_like(value, parameter)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value for name, value in entries.items()}
    wrapper.load_state_dict(dict(state, state=shares))
