"""Trading time for memory, without losing gradients."""
from functools import partial
from operator import attrgetter
from typing import List, Union

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module,
                           modules: Union[str, List[str]]) -> None:
    """Compute the activations of some modules again in the backward pass.

    mmengine's ``turn_on_activation_checkpointing`` does so by torch's
    reentrant way, in which a module that takes images gets no gradients.

    Args:
        model (nn.Module): The model, modified in place.
        modules (str | List[str]): Names of modules in it.

    Raises:
        ValueError: If there is no such module.
    """
    for name in [modules] if isinstance(modules, str) else modules:
        try:
            module = attrgetter(name)(model)
        except AttributeError:
            children = ', '.join(n for n, _ in model.named_children())
            raise ValueError(
                f'activation_checkpointing names {name!r}, which '
                f'{type(model).__name__} does not have; it has {children} and '
                'what is in these') from None
        module.forward = partial(
            checkpoint, module.forward, use_reentrant=False)
