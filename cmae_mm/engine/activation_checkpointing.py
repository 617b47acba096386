"""Activation checkpointing of transformer layers."""
from functools import partial
from operator import attrgetter
from typing import Dict, List, Union

from torch import nn
from torch.utils.checkpoint import checkpoint


def transformer_layers(model: nn.Module) -> Dict[str, nn.Module]:
    """Find layers of a model in module lists.

    Args:
        model (nn.Module): The model.

    Returns:
        Dict[str, nn.Module]: The members of each outermost
        ``nn.ModuleList`` that have parameters, by name, in the model's
        order.
    """
    found: Dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(
                name.startswith(f'{layer}.') for layer in found):
            continue
        for number, layer in enumerate(module):
            if next(layer.parameters(), None) is not None:
                found[f'{name}.{number}'] = layer
    return found


def checkpoint_activations(model: nn.Module,
                           modules: Union[bool, str, List[str]]) -> int:
    """Recompute the activations of some modules in the backward pass.

    mmengine's ``turn_on_activation_checkpointing`` uses torch's reentrant
    variant, in which a module whose input is an image gets no gradients.

    Args:
        model (nn.Module): The model, modified in place.
        modules (bool | str | List[str]): True for all trained transformer
            layers, which saves most memory and takes a quarter more time; or
            names of modules. The name of a module list (``backbone.layers``)
            selects each of its layers.

    Returns:
        int: Number of checkpointed modules.

    Raises:
        ValueError: If the model does not have such a module.
    """
    if modules is True:
        chosen = [layer for layer in transformer_layers(model).values()
                  if any(p.requires_grad for p in layer.parameters())]
        if not chosen:
            raise ValueError(
                f'activation_checkpointing=True found no list of layers in '
                f'{type(model).__name__}; name modules of it instead')
    else:
        names = [modules] if isinstance(modules, str) else modules or []
        chosen = [layer for name in names for layer in _named(model, name)]
    for module in chosen:
        module.forward = partial(
            checkpoint, module.forward, use_reentrant=False)
    return len(chosen)


def _named(model: nn.Module, name: str) -> List[nn.Module]:
    try:
        module = attrgetter(name)(model)
    except AttributeError:
        children = ', '.join(n for n, _ in model.named_children())
        raise ValueError(
            f'activation_checkpointing names {name!r}, which '
            f'{type(model).__name__} does not have; it has {children} and '
            'their modules') from None
    return list(module) if isinstance(module, nn.ModuleList) else [module]
