"""The pre-trained encoder as the backbone of a detector (ViTDet)."""
from typing import Any, Union

from mmpretrain.models import ViTSAM
from mmpretrain.registry import MODELS
from torch import nn

from ..utils import (
    check_arch,
    start_from_encoder,
    use_plain_drop_rates,
    with_mini,
)


@MODELS.register_module()
class TransferViTDet(ViTSAM):
    """mmpretrain's ``ViTSAM`` that starts from a CMAE encoder.

    Attention within windows but for a few global blocks, and relative
    positions, which start at zero. The class token and the final norm are left
    out, and positions are resampled to the image size. All else, and what
    ``init_cfg`` takes, is as in ``TransferViT``. As ``ViTSAM`` does, it drops
    paths of the MLPs, not of the attention.

    Args:
        arch (str | dict): As ``ViTSAM``'s, and 'mini'. Defaults to 'base'.
        **kwargs: Other arguments of ``ViTSAM`` but ``out_channels``: features
            keep the encoder's width.

    Raises:
        ValueError: If ``arch`` is not known.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    arch_zoo = with_mini(ViTSAM.arch_zoo, global_attn_indexes=[1, 3])

    def __init__(self, arch: Union[str, dict] = 'base', **kwargs: Any) -> None:
        check_arch(arch, self.arch_zoo)
        super().__init__(arch=arch, out_channels=0, **kwargs)
        use_plain_drop_rates(self)

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode, but for frozen stages, where nothing is dropped."""
        super().train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self

    def init_weights(self) -> None:
        """Load the encoder, or initialise as ``ViTSAM`` does."""
        if not start_from_encoder(self):
            super().init_weights()
