"""Parameters of which each rank has a share."""
from torch import Tensor, nn


def local_part(tensor: Tensor) -> Tensor:
    """Give this rank's share of a tensor, without copying it.

    Args:
        tensor (Tensor): One that ``fully_shard`` has shared out along its
            first dimension, or a plain one.

    Returns:
        Tensor: A plain tensor in the same memory, of no rows where there are
        more ranks than rows; a plain tensor as it is.
    """
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def is_sharded(model: nn.Module) -> bool:
    """Say whether ranks share a model's parameters out."""
    first = next(model.parameters(), None)
    return hasattr(first, 'to_local')
