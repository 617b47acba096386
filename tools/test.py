#!/usr/bin/env python
"""Test a checkpoint with the evaluators of its config."""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
import os
import os.path as osp

import mmengine
from mmengine.evaluator import DumpResults

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
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', help='folder of logs (default: work_dirs/<config>)')
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument(
        '--dump', help='write the raw predictions to this .pkl file')
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher (default: none)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    """Build the runner and test."""
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    if cfg.get('test_dataloader') is None:
        raise ConfigError(
            f'{args.config} has nothing to test: it has no test_dataloader, '
            'as pre-training configs have none')
    cfg.load_from, cfg.resume = args.checkpoint, False
    remember(cfg, args.cfg_options)
    adapt_to_device(cfg)

    runner = ResumableRunner.from_cfg(cfg)
    if args.dump:
        runner.test_evaluator.metrics.append(
            DumpResults(out_file_path=args.dump))
    metrics = runner.test()
    if args.out:
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    run(main)
