#!/usr/bin/env python
"""Train: pre-training, fine-tuning, detection or segmentation configs."""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
import os
import os.path as osp

from mmengine.config import Config
from mmengine.registry import RUNNERS

from cmae_mm.cli.command import run
from cmae_mm.cli.config import ConfigError, add_config_options, load_config
from cmae_mm.cli.errors import remember
from cmae_mm.engine import ResumableRunner
from cmae_mm.engine.device import adapt_to_device


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or the name of a packaged one')
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints (default: work_dirs/<config>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from the last checkpoint of the work folder, or from the '
        'one given')
    parser.add_argument(
        '--no-resume',
        action='store_true',
        help='start anew although the config resumes by itself')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the batch over all GPUs')
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher (default: none)')
    # torch.distributed.launch passes the latter form
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def apply_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Merge the command line into the config."""
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)

    if cfg.get('train_dataloader') is None or cfg.get('optim_wrapper') is None:
        raise ConfigError(
            f'{args.config} has nothing to train: it needs train_dataloader, '
            'train_cfg and optim_wrapper')
    if args.amp and cfg.optim_wrapper.get('type',
                                          'OptimWrapper') == 'OptimWrapper':
        cfg.optim_wrapper.type = 'mmpretrain.AutoAmpOptimWrapper'
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise ConfigError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr = '
                'dict(base_batch_size=...), the batch its learning rate is '
                'for; add it or leave the option out')
        cfg.auto_scale_lr.enable = True

    if args.no_resume and args.resume is not None:
        raise ConfigError('--resume and --no-resume contradict each other; '
                          'leave one of them out')
    if args.no_resume:
        cfg.resume = False
    elif args.resume == 'auto':
        cfg.resume = True
    elif args.resume is not None:
        cfg.resume, cfg.resume_from = True, args.resume
    return cfg


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = apply_args(load_config(args.config, args.cfg_options), args)
    remember(cfg, args.cfg_options)
    adapt_to_device(cfg)
    if 'runner_type' in cfg:
        runner = RUNNERS.build(cfg)
    else:
        runner = ResumableRunner.from_cfg(cfg)
    runner.train()


if __name__ == '__main__':
    run(main)
