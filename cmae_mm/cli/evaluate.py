"""What the evaluation commands have in common."""
import argparse
import os
import os.path as osp
from typing import Any, Callable, Dict, List, NamedTuple

import torch
from mmengine.dist import is_main_process

from ..engine import build_frozen_model
from ..engine.device import adapt_to_device
from ..evaluation import FrozenFeatures
from ..evaluation.features import FeatureSet
from ..evaluation.report import print_json
from .command import run
from .config import add_config_options, load_config
from .errors import remember

_DTYPES = dict(float32=torch.float32, float16=torch.float16)


def evaluation_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser with the arguments of all evaluations."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'checkpoint', help="a pre-training checkpoint, an exported backbone, "
        "a released CMAE or MAE checkpoint; or 'random', random weights")
    parser.add_argument(
        'config', help='pre-training config, a file or a packaged one by name:'
        ' model, data, normalisation')
    parser.add_argument(
        '--json', action='store_true',
        help='print the result as JSON, in the last line')
    parser.add_argument(
        '--encoder', choices=['online', 'target'], default='online')
    parser.add_argument(
        '--pool', choices=['mean', 'cls'], default='mean',
        help='mean of the patch tokens (default), or the class token')
    parser.add_argument(
        '--batch-size', type=int, default=256, help='default: 256')
    parser.add_argument(
        '--num-workers', type=int, default=2, help='default: 2')
    parser.add_argument(
        '--dtype', choices=sorted(_DTYPES), default='float32',
        help='features are kept in (default: float32)')
    parser.add_argument(
        '--work-dir', help='folder of logs (default: work_dirs/<config>_eval)')
    add_config_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


class Extracted(NamedTuple):
    """Features of training and validation images; the former's files."""

    train: FeatureSet
    val: FeatureSet
    train_paths: List[str]


def extract_for(args: argparse.Namespace) -> Extracted:
    """Extract the features that a command line asks for."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    remember(cfg, args.cfg_options)
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or osp.join('work_dirs', f'{name}_eval')
    cfg.launcher, cfg.load_from, cfg.resume = args.launcher, None, False
    adapt_to_device(cfg)
    model = build_frozen_model(cfg, args.checkpoint, args.encoder)
    source = FrozenFeatures(
        model, cfg, args.encoder, args.pool, args.batch_size,
        args.num_workers, _DTYPES[args.dtype])
    train = source.datasets['train']
    paths = [train.get_data_info(i).get('img_path', '')
             for i in range(len(train))]
    return Extracted(source.extract('train'), source.extract('val'), paths)


def run_command(parser: argparse.ArgumentParser,
                evaluate: Callable[[argparse.Namespace], Dict[str, Any]]
                ) -> None:
    """Run an evaluation; say in one line what is wrong with its input.

    Args:
        parser (argparse.ArgumentParser): The command's arguments.
        evaluate (Callable): Prints a table and returns the result.
    """
    def main() -> None:
        args = parser.parse_args()
        result = evaluate(args)
        if args.json and is_main_process():
            print_json(dict(
                checkpoint=args.checkpoint, encoder=args.encoder,
                pool=args.pool, **result))

    run(main)
