"""The multi-layer perceptron that projector and predictor are."""
from typing import Any


def mlp_cfg(cfg: dict, **sizes: Any) -> dict:
    """Complete the config of a projector or predictor.

    Args:
        cfg (dict): What is set, over the released code's: two linear layers
            by way of 1536 to 256, BatchNorm in the middle alone, a bias on
            the first alone.
        **sizes: What follows from other parts, over both.

    Returns:
        dict: A registered neck's config.
    """
    return dict(
        type='NonLinearNeck',
        hid_channels=1536,
        out_channels=256,
        with_bias=True,
        with_last_bn=False,
        with_avg_pool=False,
        norm_cfg=dict(type='BN1d', eps=1e-6)) | dict(cfg) | sizes
