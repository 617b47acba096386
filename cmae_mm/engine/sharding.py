"""Models whose parameters are shared out over processes.

torch's ``fully_shard`` keeps of each parameter, its gradient and what the
optimizer knows of it only one process's rows, as a ``DTensor``, and gathers a
layer's parameters while it computes. What is saved is gathered, so that
checkpoints are those of a model in one piece.
"""
from typing import Any, Dict, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

try:
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # before torch 2.5

    class DTensor(Tensor):  # type: ignore[no-redef]
        """Stands in for what there is none of."""

    distribute_tensor = None


def is_sharded(tensors: Sequence[Tensor]) -> bool:
    """Say whether there are tensors that are shared out."""
    return any(isinstance(t, DTensor) for t in tensors)


def local(tensor: Tensor) -> Tensor:
    """Give this process's part of a tensor; all of an ordinary one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, keep: bool = True) -> Any:
    """Gather tensors in nested containers, on the CPU.

    All processes have to ask for it, and in the same order.

    Args:
        value (Any): A tensor, or containers of them.
        keep (bool): Whether this process needs the result; the others only
            take part. Defaults to True.

    Returns:
        Any: The same with ordinary tensors, or None in their place.
    """
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, Tensor):
        return value.detach().cpu() if keep else None
    if isinstance(value, Mapping):
        return type(value)(
            (k, whole(v, keep)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(whole(v, keep) for v in value)
    return value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Take a process's part of a whole tensor.

    Args:
        value (Tensor): A whole tensor, which each process has.
        like (Tensor): A tensor of the same shape, shared out or not.

    Returns:
        Tensor: The values, shared out in the same way.
    """
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    mesh = like.device_mesh
    return distribute_tensor(
        value.to(like.device, like.dtype), mesh, like.placements)


@torch.no_grad()
def load_whole_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors into a model that may be sharded.

    Args:
        model (nn.Module): The model.
        state (Mapping[str, Tensor]): Tensors by name, on all processes;
            names that it lacks keep their values.
    """
    own = model.state_dict()
    if not is_sharded(list(own.values())):
        model.load_state_dict(state, strict=False)
        return
    for name, value in state.items():
        if name in own and own[name] is not value:
            own[name].copy_(shard_like(value, own[name]))


def shard_optimizer_state(optimizer: Optimizer,
                          state: Dict[str, Any]) -> Dict[str, Any]:
    """Share out what a checkpoint knows of an optimizer.

    Args:
        optimizer (Optimizer): An optimizer of parameters that may be sharded.
        state (Dict[str, Any]): Its ``state_dict()``, of whole tensors.

    Returns:
        Dict[str, Any]: The same as the optimizer keeps it.
    """
    parameters = [p for g in optimizer.param_groups for p in g['params']]
    if not is_sharded(parameters):
        return state
    shared = {}
    for number, values in state['state'].items():
        like = parameters[int(number)]
        shared[number] = {
            k: shard_like(v, like) if isinstance(v, Tensor)
            and v.shape == like.shape and v.dim() else v
            for k, v in values.items()}
    return {**state, 'state': shared}


def reduce_norm(norm: Tensor, norm_type: float,
                tensors: Sequence[Tensor]) -> Tensor:
    """Make the norm over a process's parts that over whole tensors.

    Args:
        norm (Tensor): p-norm over this process's part of them.
        norm_type (float): The p.
        tensors (Sequence[Tensor]): Tensors, all shared out or none.

    Returns:
        Tensor: The norm, the same on all processes where they are shared out.
    """
    first = next((t for t in tensors if isinstance(t, DTensor)), None)
    if first is None:
        return norm
    group = first.device_mesh.get_group()
    if norm_type == float('inf'):
        dist.all_reduce(norm, dist.ReduceOp.MAX, group)
        return norm
    norm = norm**norm_type
    dist.all_reduce(norm, group=group)
    return norm**(1 / norm_type)
