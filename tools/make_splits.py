#!/usr/bin/env python
"""Draw shares of a labelled data set, to train with few labels.

Writes DATA_ROOT/splits/<percent>pct_seed<seed>.txt for each share: an
annotation file of the images in DATA_ROOT/train, each class with its share.
"""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
import os.path as osp

from mmengine.registry import init_default_scope

from cmae_mm.cli.command import run
from cmae_mm.cli.config import add_debug_option
from cmae_mm.evaluation import build_eval_dataset
from cmae_mm.evaluation.splits import write_split


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_root', help='has train/<class>/*.jpg')
    parser.add_argument(
        '--percent', type=float, nargs='+', default=[1., 10.],
        help='shares (default: 1 10)')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    parser.add_argument(
        '--out', help='folder to write to (default: DATA_ROOT/splits)')
    add_debug_option(parser)
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    dataset = build_eval_dataset(
        dict(
            type='LabelledDataset', data_root=args.data_root,
            data_prefix='train', pipeline=[]))
    for percent in args.percent:
        path = osp.join(args.out or osp.join(args.data_root, 'splits'),
                        f'{percent:g}pct_seed{args.seed}.txt')
        count = write_split(dataset, percent, args.seed, path)
        print(f'{path}: {count} of {len(dataset)} images')


if __name__ == '__main__':
    run(main)
