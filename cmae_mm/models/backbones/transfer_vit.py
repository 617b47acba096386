"""The pre-trained encoder as the backbone of a classifier or segmenter."""
from typing import Any, Union

from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS
from torch import nn

from ..utils import (
    check_arch,
    start_from_encoder,
    use_plain_drop_rates,
    with_mini,
)


@MODELS.register_module()
class TransferViT(VisionTransformer):
    """mmpretrain's ``VisionTransformer`` that starts from a CMAE encoder.

    All is as in ``VisionTransformer``, but for the start from a checkpoint::

        init_cfg=dict(type='Pretrained', checkpoint=..., encoder='online')

    takes a pre-training checkpoint, an exported backbone, a fine-tuned model,
    a released CMAE checkpoint or an MAE encoder as it is, says which it took,
    and loads every key or none, see
    :func:`cmae_mm.checkpoints.load_encoder_into`. With ``checkpoint='random'``
    or ``init_cfg=None`` it starts from random weights.

    Args:
        arch (str | dict): As ``CMAEViT``'s: mmpretrain's names but for
            'small', and 'mini'. Defaults to 'base'.
        **kwargs: Other arguments of ``VisionTransformer``.

    Raises:
        ValueError: If ``arch`` is not known.
        CheckpointError: When weights are initialised, if the checkpoint is
            missing or does not fit.
    """

    arch_zoo = with_mini(VisionTransformer.arch_zoo)

    def __init__(self, arch: Union[str, dict] = 'base', **kwargs: Any) -> None:
        check_arch(arch, self.arch_zoo)
        super().__init__(arch=arch, **kwargs)
        use_plain_drop_rates(self)

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode, but for frozen stages, where nothing is dropped."""
        super().train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self

    def init_weights(self) -> None:
        """Load the encoder, or initialise as ``VisionTransformer`` does."""
        if not start_from_encoder(self):
            super().init_weights()
