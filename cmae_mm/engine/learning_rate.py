"""Learning rates for the batch that there is."""
from logging import Logger
from typing import Optional

from mmengine.optim import OptimWrapper


def scale_learning_rate(optim_wrapper: OptimWrapper,
                        auto_scale_lr: Optional[dict], batch: int,
                        world_size: int, logger: Logger) -> None:
    """Scale the learning rate to the batch of an optimizer step.

    mmengine's leaves gradient accumulation out.

    Args:
        optim_wrapper (OptimWrapper): The optimizer wrapper, whose parameter
            groups are changed.
        auto_scale_lr (dict, optional): ``base_batch_size``, the batch that
            the rate is for, and ``enable``.
        batch (int): Number of images of a process.
        world_size (int): Number of processes.
        logger (Logger): Where it is said.
    """
    if not auto_scale_lr or not auto_scale_lr.get('enable', False):
        return
    accumulated = optim_wrapper._accumulative_counts
    total = batch * world_size * accumulated
    base = auto_scale_lr['base_batch_size']
    logger.info(
        f'Learning rates are multiplied by {total / base:g}: {batch} images '
        f'on {world_size} process(es), {accumulated} batches a step, are '
        f'{total} where the config is for {base}.')
    for group in optim_wrapper.optimizer.param_groups:
        group['lr'] *= total / base
