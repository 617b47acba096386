"""Drop rates as torch.compile can read them."""
from torch import nn


def use_plain_drop_rates(module: nn.Module) -> None:
    """Make a transformer's drop rates Python numbers, in place.

    mmpretrain takes them from numpy, whose numbers torch.compile treats as
    tensors: each layer would break the graph.

    Args:
        module (nn.Module): A backbone.
    """
    for layer in module.modules():
        if hasattr(layer, 'drop_prob'):
            layer.drop_prob = float(layer.drop_prob)
