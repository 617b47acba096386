"""Training state between two steps."""
from typing import Dict

import torch
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ..models.utils import local_part

_KEY = 'due_validation'


def at_optimizer_step(runner) -> bool:
    """Return whether the iteration ends an optimizer step."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    return all(w.should_update() for w in wrappers)


def all_finite(model: nn.Module) -> bool:
    """Return whether all parameters are finite, with one synchronisation.

    Checks this rank's shard of a sharded model.
    """
    finite = [torch.isfinite(local_part(p.detach())).all()
              for p in model.parameters()]
    return not finite or bool(torch.stack(finite).all())


def describe_batch(runner) -> Dict[str, int]:
    """Return the number of processes and the batch size of each."""
    return dict(
        world_size=get_world_size(),
        batch_size=runner.train_dataloader.batch_size)


def validation_follows(runner: Runner, done: int) -> bool:
    """Return whether the training loop validates at this point.

    Args:
        runner (Runner): The runner, in training.
        done (int): Number of finished epochs, or of finished iterations in a
            loop by iterations.

    Returns:
        bool: False where there is no validation data.
    """
    loop = runner.train_loop
    if runner.val_loop is None or done < loop.val_begin:
        return False
    last = (loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else
            loop.max_iters)
    return done % loop.val_interval == 0 or done == last


def validation_pending(runner: Runner) -> bool:
    """Return whether validation is due after the current state."""
    return bool(runner.message_hub.get_info(_KEY, False))


def note_pending_validation(runner: Runner, pending: bool) -> None:
    """Store in the message hub whether validation is due.

    Checkpoints contain the message hub. A resumed run first runs the
    validation that was due, so that the best checkpoint is known.

    Args:
        runner (Runner): The runner, in training.
        pending (bool): Whether validation is due.
    """
    runner.message_hub.update_info(_KEY, pending)
