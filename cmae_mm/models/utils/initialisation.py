"""How encoders and decoders are initialised."""
from typing import Any

from mmpretrain.registry import WEIGHT_INITIALIZERS
from torch import nn

# MAE's initialisation, of encoder and decoders.
MAE_INIT = [
    dict(type='Xavier', distribution='uniform', layer='Linear'),
    dict(type='Constant', val=1, bias=0, layer='LayerNorm')
]


def is_pretrained(init_cfg: Any) -> bool:
    """Tell whether an ``init_cfg`` names a checkpoint."""
    return isinstance(init_cfg, dict) and init_cfg['type'] == 'Pretrained'


def start_from_encoder(module: nn.Module) -> bool:
    """Load the encoder that a backbone's ``init_cfg`` names.

    Args:
        module (nn.Module): The backbone. An ``init_cfg`` that names no file is
            set to None.

    Returns:
        bool: Whether there was one; otherwise the backbone is still to be
        initialised.

    Raises:
        CheckpointError: If the checkpoint is missing or does not fit.
    """
    if not is_pretrained(module.init_cfg):
        return False
    settings = {k: v for k, v in module.init_cfg.items() if k != 'type'}
    # By its name: checkpoints know models, and not the reverse.
    initializer = WEIGHT_INITIALIZERS.get('PretrainedEncoder')
    if initializer(**settings)(module):
        module._is_init = True
        return True
    module.init_cfg = None
    return False
