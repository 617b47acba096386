"""What a training is like between two steps."""
from typing import Dict

import torch
from mmengine.dist import get_world_size
from torch import nn

from ...models.utils import local_part


def at_optimizer_step(runner) -> bool:
    """Say whether no gradients are being accumulated, after an iteration."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    return all(w.should_update() for w in wrappers)


def all_finite(model: nn.Module) -> bool:
    """Say whether all parameters are numbers, at one synchronisation.

    Of a model that ranks share out it is this rank's part.
    """
    finite = [torch.isfinite(local_part(p.detach())).all()
              for p in model.parameters()]
    return not finite or bool(torch.stack(finite).all())


def describe_batch(runner) -> Dict[str, int]:
    """Give the number of processes and the batch size of each."""
    return dict(
        world_size=get_world_size(),
        batch_size=runner.train_dataloader.batch_size)
