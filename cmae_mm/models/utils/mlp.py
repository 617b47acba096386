"""The multi-layer perceptron that projector and predictor are."""
from typing import Any

from .fill_in import fill_in


def mlp_cfg(cfg: dict, name: str, **sizes: Any) -> dict:
    """Complete the config of a projector or predictor.

    Args:
        cfg (dict): What is set, over the released code's: two linear layers
            by way of 1536 to 256, BatchNorm in the middle alone, a bias on
            the first alone.
        name (str): Of the config, for errors.
        **sizes: What follows from other parts.

    Returns:
        dict: A registered neck's config.

    Raises:
        ValueError: If the config sets one of the sizes to something else.
    """
    cfg = fill_in(cfg, name, **sizes)
    return dict(
        type='mmpretrain.NonLinearNeck',
        hid_channels=1536,
        out_channels=256,
        with_bias=True,
        with_last_bn=False,
        with_avg_pool=False,
        norm_cfg=dict(type='BN1d', eps=1e-6)) | cfg
