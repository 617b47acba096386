"""What timm's and DINO's encoders have that a plain one has not."""
import re
from typing import List, Tuple

import torch

from .files import StateDict

_REGISTERS = ('reg_token', 'register_tokens')
# Scales of a block's two branches, and the layers that end these.
_SCALES = (('ls1', 'attn.proj'), ('ls2', 'mlp.fc2'))


def make_plain(state: StateDict) -> Tuple[StateDict, List[str]]:
    """Turn an encoder under timm's names into a plain vision transformer.

    - LayerScale (DINOv2) is multiplied into the layers before it, which
      changes nothing.
    - Positions without one of the class token get a zero for it, which
      changes nothing either.
    - Register tokens have no place in it and are left out.

    Args:
        state (StateDict): An encoder under timm's names.

    Returns:
        Tuple[StateDict, List[str]]: The encoder under the same names, and a
        line for each change.
    """
    state = dict(state)
    lines: List[str] = []
    scales = [k for k in state if re.fullmatch(
        r'blocks\.\d+\.ls[12]\.gamma', k)]
    for name in scales:
        block, scale, _ = name.rsplit('.', 2)
        layer = f'{block}.{dict(_SCALES)[scale]}'
        if f'{layer}.weight' not in state:  # gated: refused by its names
            return state, lines
    for name in scales:
        gamma = state.pop(name)
        block, scale, _ = name.rsplit('.', 2)
        for part in ('weight', 'bias'):
            key = f'{block}.{dict(_SCALES)[scale]}.{part}'
            if key in state:
                value = state[key]
                state[key] = value * gamma.view(-1, *[1] * (value.dim() - 1))
    if scales:
        lines.append('its LayerScale was multiplied into the layers before '
                     'it, which changes nothing')
    registers = [name for name in _REGISTERS if name in state]
    for name in registers:
        count = state.pop(name).shape[1]
        lines.append(f'left out: its {count} register token(s), without which '
                     'it gives other features than it was trained to')
    positions = state.get('pos_embed')
    if positions is not None and positions.dim() == 3 and (
            'cls_token' in state and _is_square(positions.shape[1])):
        state['pos_embed'] = torch.cat(
            [torch.zeros_like(positions[:, :1]), positions], dim=1)
    return state, lines


def _is_square(number: int) -> bool:
    return number > 1 and round(number**.5)**2 == number
