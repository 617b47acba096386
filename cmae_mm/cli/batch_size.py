"""Find the largest batch that fits into a GPU's memory."""
import argparse
from typing import TYPE_CHECKING

from ..config import ConfigError, load_config, remember
from .arguments import above_zero, add_cfg_options, add_config
from .command import Command, Result

if TYPE_CHECKING:
    from mmengine.config import Config

# Left for the CUDA context and NCCL's buffers.
_HEADROOM = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser, 'config of a pre-training')
    parser.add_argument(
        '--memory-limit', type=above_zero, metavar='GIB',
        help='memory of a smaller GPU (default: what this GPU has)')
    add_cfg_options(parser)


def check_config(cfg: 'Config', name: str) -> None:
    """Check that a config pre-trains.

    Raises:
        ConfigError: If it does not.
    """
    kind = str((cfg.get('model') or {}).get('type')).split('.')[-1]
    if kind != 'CMAE' or cfg.get('optim_wrapper') is None:
        raise ConfigError(
            'batch-size needs a pre-training config with a model of type '
            f"'CMAE' and an optim_wrapper, but {name} has a model of type "
            f'{kind!r}; for others, halve the batch until it fits')


def batch_size(args: argparse.Namespace) -> Result:
    """Try batches and print the results."""
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from ..engine.training_step import BatchTrial, largest_batch
    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg, args.config)
    if not torch.cuda.is_available():
        raise ConfigError(
            'batch-size needs a CUDA GPU, and torch finds none; on a CPU, '
            'halve train_dataloader.batch_size until the training fits')
    remember(cfg, args.cfg_options)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    memory = found.total_memory / 2**30
    if (args.memory_limit or 0) > memory:
        raise ConfigError(f'--memory-limit must be at most {memory:.1f}, the '
                          f'GiB of this GPU, but got {args.memory_limit:g}')
    limit = (args.memory_limit or memory) * (1 - _HEADROOM)
    # Leave out the lines on each initialised parameter.
    MMLogger.get_current_instance().setLevel('WARNING')
    print(f'{found.name}: at most {limit:.1f} GiB\n'
          f'{"batch":>7}{"GiB":>9}{"images/s":>11}', flush=True)
    trial = BatchTrial(cfg, limit)

    def fits(size: int) -> bool:
        fitting = trial.fits(size)
        print(f'{size:7d}{trial.peak:9.2f}{trial.rate:11.1f}' if fitting else
              f'{size:7d}   does not fit', flush=True)
        return fitting

    size = largest_batch(fits, cfg.train_dataloader.batch_size)
    print(f'--cfg-options train_dataloader.batch_size={size}' if size else
          'not even two images fit, which the contrast needs')
    return dict(config=args.config, device=found.name, limit_gib=limit,
                largest=size, exit_status=int(not size))


COMMANDS = [
    Command(
        name='batch-size',
        help='find the largest batch that fits into the memory of a GPU',
        description='Runs real training steps of random images, beginning '
        "with the config's batch: doubled while it fits, or halved until it "
        'fits. A tenth of the memory is left free. Several processes (DDP) '
        'also need the size of the gradients.',
        example='cmae batch-size cmae_vit-b_300e\n'
        'cmae batch-size cmae_vit-b_300e --memory-limit 24 --cfg-options '
        'activation_checkpointing=True',
        add_arguments=add_arguments,
        run=batch_size),
]
