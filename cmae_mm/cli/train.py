"""Training any config: pre-training, or transfer to another task."""
import argparse
from typing import TYPE_CHECKING

from ..apis.checks import check_log_to
from ..config import ConfigError, load_config, remember
from .arguments import (
    add_cfg_options,
    add_config,
    add_launcher,
    add_log_to,
    add_work_dir,
    note_local_rank,
    set_work_dir,
)
from .command import Command, Result

if TYPE_CHECKING:
    from mmengine.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    add_work_dir(parser)
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from the last checkpoint of the work folder, or from the '
        'one given')
    parser.add_argument(
        '--no-resume', action='store_true',
        help='start anew although the config resumes by itself')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate to the batch over all GPUs')
    add_log_to(parser)
    add_cfg_options(parser)
    add_launcher(parser)


def check(args: argparse.Namespace) -> None:
    """Find contradictions, and libraries to log to that are missing.

    Raises:
        ConfigError: If there are contradictions.
    """
    check_log_to(args.log_to)
    if args.no_resume and args.resume is not None:
        raise ConfigError('--resume and --no-resume contradict each other; '
                          'leave one of them out')


def apply_arguments(cfg: 'Config', args: argparse.Namespace) -> None:
    """Merge the command line into a config, in place."""
    cfg.launcher = args.launcher
    set_work_dir(cfg, args)
    if cfg.get('train_dataloader') is None or cfg.get('optim_wrapper') is None:
        raise ConfigError(
            f'{args.config} has nothing to train: it needs train_dataloader, '
            'train_cfg and optim_wrapper')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if args.amp and kind == 'OptimWrapper':
        cfg.optim_wrapper.type = 'mmpretrain.AutoAmpOptimWrapper'
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise ConfigError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr = '
                'dict(base_batch_size=...), the batch its learning rate is '
                'for; add it or leave the option out')
        cfg.auto_scale_lr.enable = True
    if args.no_resume:
        cfg.resume = False
    elif args.resume == 'auto':
        cfg.resume = True
    elif args.resume is not None:
        cfg.resume, cfg.resume_from = True, args.resume


def train(args: argparse.Namespace) -> Result:
    """Build the runner and train; say how far and where."""
    from mmengine.registry import RUNNERS

    from ..engine import ResumableRunner
    from ..engine.device import adapt_to_device
    from ..engine.work_dir import log_to, work_dir_lock
    note_local_rank(args)
    cfg = load_config(args.config, args.cfg_options)
    apply_arguments(cfg, args)
    log_to(cfg, args.log_to)
    remember(cfg, args.cfg_options)
    adapt_to_device(cfg)
    with work_dir_lock(cfg.work_dir, cfg.launcher):
        if 'runner_type' in cfg:
            runner = RUNNERS.build(cfg)
        else:
            runner = ResumableRunner.from_cfg(cfg)
        runner.train()
    return dict(work_dir=runner.work_dir, epochs=runner.epoch,
                iterations=runner.iter)


COMMANDS = [
    Command(
        name='train',
        help='train any config: pre-training or transfer',
        example='cmae train cmae_vit-s_300e --work-dir work_dirs/mine\n'
        'tools/dist_train.sh configs/cmae_vit-b_800e.py 8',
        add_arguments=add_arguments,
        check=check,
        stopped=lambda args: 'the last checkpoint, if one was saved, is in '
        'the work folder, and the same command goes on',
        run=train),
]
