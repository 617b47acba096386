"""The model inside of what distributed training wraps it in."""
from mmengine.model import is_model_wrapper
from torch import nn


def unwrapped_model(runner) -> nn.Module:
    """Give a runner's model without its distributed wrapper."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model
