"""Plain vision transformers and hybrid ones: neither starts from the other."""
import re
from typing import Dict

from torch import Tensor

from .errors import CheckpointError

PLAIN = 'a plain vision transformer'
HYBRID = 'a hybrid one with convolution stages'
_CONFIGS = {
    PLAIN: "CMAEViT, TransferViT or TransferViTDet",
    HYBRID: "CMAEConvViT, TransferConvViT or TransferConvViTDet"
}


def is_hybrid(state: Dict[str, Tensor]) -> bool:
    """Tell whether an encoder has convolution stages.

    Args:
        state (Dict[str, Tensor]): State dict of an encoder, or of a model
            that holds one, under our names.
    """
    return any(re.match(r'(.+\.)?conv_stages\.\d', k) for k in state)


def family_of(state: Dict[str, Tensor]) -> str:
    """Say what kind of encoder is in a state dict, '' if there is none.

    Args:
        state (Dict[str, Tensor]): As for :func:`is_hybrid`.

    Returns:
        str: :data:`PLAIN`, :data:`HYBRID` or ''.
    """
    if is_hybrid(state):
        return HYBRID
    plain = any(re.match(r'(.+\.)?layers\.\d+\.attn\.', k) for k in state)
    return PLAIN if plain else ''


def check_family(state: Dict[str, Tensor],
                 expected: Dict[str, Tensor]) -> None:
    """Check that a checkpoint's encoder is of the model's kind.

    Args:
        state (Dict[str, Tensor]): The checkpoint's, under our names.
        expected (Dict[str, Tensor]): The model's.

    Raises:
        CheckpointError: If one is plain and the other hybrid.
    """
    theirs, ours = family_of(state), family_of(expected)
    if theirs and ours and theirs != ours:
        raise CheckpointError(
            f"its encoder is {theirs}, the model's is {ours}, and neither "
            'starts from the other: take a config whose backbone is '
            f'{_CONFIGS[theirs]}, or a checkpoint of the other kind')
