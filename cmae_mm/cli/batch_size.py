"""Finding the largest batch that fits into memory."""
import argparse
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from ..config import ConfigError, load_config, remember
from .arguments import add_cfg_options, add_config
from .command import Command, Result
from .parser import above_zero, at_least

if TYPE_CHECKING:
    from mmengine.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser, 'config of a pre-training')
    parser.add_argument(
        '--memory-limit', type=above_zero, metavar='GIB',
        help='as if the device had so much memory (default: what the GPU has, '
        'or what is free for a CPU)')
    parser.add_argument(
        '--headroom', type=float, default=0.1, metavar='SHARE',
        help='share of the memory that is left free (default: 0.1)')
    parser.add_argument(
        '--activation-checkpointing', action='store_true',
        help='compare with activation_checkpointing=True')
    parser.add_argument(
        '--most', type=at_least(2), default=4096, metavar='N',
        help='largest batch that is tried (default: 4096)')
    add_cfg_options(parser)


def check(args: argparse.Namespace) -> None:
    """Check the share that is left free.

    Raises:
        ValueError: If it is none.
    """
    if not 0 <= args.headroom < 1:
        raise ValueError('--headroom is a share of the memory, from 0 to '
                         f'below 1, but got {args.headroom:g}')


def check_config(cfg: 'Config', name: str) -> None:
    """Check that a config pre-trains.

    Raises:
        ConfigError: If it does not.
    """
    kind = str((cfg.get('model') or {}).get('type')).split('.')[-1]
    if kind != 'CMAE' or cfg.get('optim_wrapper') is None:
        raise ConfigError(
            f'batches are tried with a pre-training config, with a model of '
            f"type 'CMAE' and an optim_wrapper, but {name} has a model of "
            f'type {kind!r}; for others, halve the batch until it fits')


def find_memory(args: argparse.Namespace) -> Tuple[str, float]:
    """Give the name of the device, and its memory in bytes.

    Raises:
        ConfigError: If the device is neither a CUDA GPU nor a CPU.
    """
    import torch

    from ..engine.device import has_accelerator
    from ..engine.memory import available_memory
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        name, memory = found.name, float(found.total_memory)
    elif has_accelerator():
        raise ConfigError('batches can be tried on CUDA GPUs and CPUs, and '
                          'this accelerator is neither')
    else:
        name, memory = 'cpu', float(available_memory())
    if args.memory_limit is not None:
        limit = args.memory_limit * 2**30
        if limit > memory:
            raise ConfigError(
                f'--memory-limit {args.memory_limit:g}: only '
                f'{memory / 2**30:.1f} GiB are there; give at most as many')
        memory = limit
    return name, memory


def batch_size(args: argparse.Namespace) -> Result:
    """Try batches, print what was found."""
    from mmengine.registry import init_default_scope
    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg, args.config)
    remember(cfg, args.cfg_options)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    device, memory = find_memory(args)
    budget = memory * (1 - args.headroom)
    print(f'{device}: {memory / 2**30:.1f} GiB, of which '
          f'{budget / 2**30:.1f} may be used')
    if cfg.get('compile'):
        print('compile=True is left out: it takes minutes for each batch')
    settings: Dict[str, Any] = dict(
        as_it_is=cfg.get('activation_checkpointing'))
    if args.activation_checkpointing:
        settings['checkpointed'] = True
    found = {name: try_sizes(cfg, device, int(budget), value, args.most)
             for name, value in settings.items()}
    return dict(config=args.config, device=device,
                memory_gib=memory / 2**30, budget_gib=budget / 2**30, **found)


def try_sizes(cfg: 'Config', device: str, budget: int, checkpointing: Any,
              most: int) -> Dict[str, Any]:
    """Try batch sizes with one setting, and say each as it is done."""
    from ..engine.batch_trials import (
        ChildTrials,
        DeviceTrials,
        Trial,
        largest,
        search,
    )
    kind = ChildTrials if device == 'cpu' else DeviceTrials
    print(f'\nactivation_checkpointing={checkpointing or False}\n'
          f'{"batch":>7}{"GiB":>9}{"images/s":>11}')
    attempt = kind(cfg, budget, checkpointing)

    def say(size: int) -> Trial:
        trial = attempt(size)
        print(f'{size:7d}{trial.peak_gib:9.2f}{trial.images_per_s:11.1f}'
              if trial.fits else f'{size:7d}   does not fit', flush=True)
        return trial

    try:
        trials: List[Trial] = search(say, 2, most)
    finally:
        attempt.close()
    size = largest(trials)
    if not size:
        print('not even two images fit, which the contrast needs')
    elif size == most:
        print(f'{size} fit; more were not tried (--most)')
    else:
        extra = f' activation_checkpointing={checkpointing}' * bool(
            checkpointing)
        print('largest batch of a process: --cfg-options '
              f'train_dataloader.batch_size={size}{extra}')
    return dict(largest=size, trials=[t._asdict() for t in trials])


COMMANDS = [
    Command(
        name='batch-size',
        help='find the largest batch that fits into memory',
        description='Makes real training steps of random images: batches of '
        'twice as many until one does not fit, then in between. On a CPU in a '
        'process of its own, which is ended before it takes more than it '
        'may. Several processes (DDP) need the size of the gradients besides.',
        example='cmae batch-size cmae_vit-b_300e --activation-checkpointing\n'
        'cmae batch-size cmae_vit-b_300e --memory-limit 24',
        add_arguments=add_arguments,
        check=check,
        run=batch_size),
]
