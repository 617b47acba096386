"""Optimizers that update all parameters in few kernels."""
from typing import Any, Dict, List

import torch
from torch.optim import Adam, AdamW, Optimizer

# How parameters are updated, which changes results by rounding alone.
_HOW = ('fused', 'foreach')


def use_fused(optimizer: Optimizer) -> bool:
    """Let Adam and AdamW update parameters in one pass, in place.

    On a CPU this is several times as fast as torch's loop over parameters.
    What the optimizer was told about it is left as it is.

    Args:
        optimizer (Optimizer): The optimizer, before its first step.

    Returns:
        bool: Whether it is fused now; not where torch has no such kernel for
        the device.
    """
    groups = optimizer.param_groups
    given = _HOW + ('capturable', 'differentiable')
    if type(optimizer) not in (Adam, AdamW) or optimizer.state or any(
            group.get(name) for group in groups for name in given):
        return False
    parameters = [p for group in groups for p in group['params']]
    if len({p.device for p in parameters}) != 1 or not all(
            p.is_floating_point() for p in parameters):
        return False
    sample = torch.nn.Parameter(torch.zeros(1, device=parameters[0].device))
    try:
        type(optimizer)([sample], fused=True)
    except RuntimeError:  # older versions of torch, or other devices
        return False
    for group in groups:
        group['fused'] = True
    optimizer.defaults['fused'] = True
    return True


def keep_how(optimizer: Optimizer, state: Dict[str, Any]) -> None:
    """Make a saved state say how this optimizer updates, in place.

    The machine that it was saved on may have had other kernels.

    Args:
        optimizer (Optimizer): The optimizer that shall load it.
        state (dict): What its ``state_dict`` gave.
    """
    saved: List[Dict[str, Any]] = state.get('param_groups', [])
    for group, own in zip(saved, optimizer.param_groups):
        group.update({name: own[name] for name in _HOW if name in own})
