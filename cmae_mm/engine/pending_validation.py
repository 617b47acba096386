"""Validation that is to follow what has been trained, or saved.

Each checkpoint says in its message hub whether validation was still to follow
it. A run that was stopped in between makes up for it when it goes on, so that
the best checkpoint is known.
"""
from mmengine.runner import EpochBasedTrainLoop, Runner

_KEY = 'due_validation'


def validation_follows(runner: Runner, done: int) -> bool:
    """Say whether the training loop validates at this point.

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
    """Say whether the run's state, as it would be saved, awaits validation."""
    return bool(runner.message_hub.get_info(_KEY, False))


def note_pending_validation(runner: Runner, pending: bool) -> None:
    """Note in the message hub whether validation is still to follow.

    Args:
        runner (Runner): The runner, in training.
        pending (bool): What checkpoints are to say from here on.
    """
    runner.message_hub.update_info(_KEY, pending)
