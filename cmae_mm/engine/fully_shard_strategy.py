"""mmengine's distributed strategy, with a model that ranks share out."""
from typing import Any, Optional

from mmengine.device import get_device
from mmengine.model import BaseDataPreprocessor
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES
from torch import nn

from .optimizers import skipping_steps
from .sharding import check_can_shard, load_optimizer, shard
from .sharing_strategy import SharingStrategy


@STRATEGIES.register_module()
class FullyShardStrategy(SharingStrategy):
    """Shares parameters, gradients and optimizer state out between ranks.

    In the place of mmengine's ``FSDPStrategy``, by torch's ``fully_shard``
    (FSDP2). The former flattens what a unit holds into one tensor, of which
    ranks get equal pieces: a rank would have other parts of an online
    parameter than of the target's. This one shares out each parameter by its
    rows, the target as the online branch, so that the moving average needs no
    communication and is exact.

    It is ``ShardedRunner``'s.

    Args:
        **kwargs: Arguments of ``SharingStrategy``.

    Raises:
        ImportError: If torch is older than 2.6.
        ValueError: If no launcher has started this process, there is a
            ``model_wrapper``, or training is in float16.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_can_shard()

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, BaseDataPreprocessor):
                module.to(get_device())
        model = self.convert_model(model)
        shard(model)
        return model

    def build_optim_wrapper(self, optim_wrapper: Any,
                            model: Optional[nn.Module] = None
                            ) -> BaseOptimWrapper:
        """Build an optimizer wrapper, see ``DDPStrategy``.

        Raises:
            ValueError: If it trains in float16.
        """
        built = super().build_optim_wrapper(
            skipping_steps(optim_wrapper), model)
        scaler = getattr(built, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            raise ValueError(
                'FullyShardStrategy has no loss scaler for float16; set '
                "optim_wrapper.dtype='bfloat16' or 'float32'")
        return built

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole optimizer state; all ranks must take part."""
        load_optimizer(self.optim_wrapper, state_dict)
