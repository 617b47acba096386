"""The pre-trained hybrid encoder as the backbone of a classifier."""
from typing import Any, Union

from mmpretrain.registry import MODELS

from .convvit import ConvViT


@MODELS.register_module()
class TransferConvViT(ConvViT):
    """The hybrid encoder that starts from a CMAE or ConvMAE encoder.

    What ``init_cfg`` takes is as in ``TransferViT``; with
    ``checkpoint='random'`` or ``init_cfg=None`` it starts from the weights
    that pre-training starts from. Fusion layers and final norm are left out
    by default, and positions are resampled to the image size.

    Args:
        arch (str | dict): As ``CMAEConvViT``'s. Defaults to 'base'.
        out_type (str): See :class:`ConvViT`. Defaults to 'avg_featmap', the
            mean over the tokens, then a norm of its own.
        **kwargs: Other arguments of :class:`ConvViT`.

    Raises:
        ValueError: If ``arch`` is not known, or sizes do not fit each other.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    def __init__(self,
                 arch: Union[str, dict] = 'base',
                 out_type: str = 'avg_featmap',
                 **kwargs: Any) -> None:
        super().__init__(arch=arch, out_type=out_type, **kwargs)
