#!/usr/bin/env python
"""Evaluate an encoder by weighted k-nearest neighbours.

The labelled images are those of the config: its `evaluation`, or the folders
train and val (or test) of class folders in its data root.
"""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
from typing import Any, Dict

from cmae_mm.cli.evaluation import (
    evaluation_parser,
    extract_for,
    run_command,
)
from cmae_mm.evaluation import knn_predict
from cmae_mm.evaluation.knn import KS
from cmae_mm.evaluation.report import report_sweep


def evaluate(args: argparse.Namespace) -> Dict[str, Any]:
    """Extract, classify, print."""
    if min(args.ks) < 1 or args.temperature <= 0:
        raise ValueError(
            '--ks must be 1 or more and --temperature above 0, but got '
            f'{args.ks} and {args.temperature}')
    train, val, _ = extract_for(args)
    predicted = knn_predict(*train, val.features, args.ks, args.temperature)
    print(f'k-NN, {len(train.labels)} training and {len(val.labels)} test '
          'images')
    return report_sweep('k', predicted, val.labels)


if __name__ == '__main__':
    parser = evaluation_parser(__doc__)
    parser.add_argument(
        '--ks', type=int, nargs='+', default=KS,
        help=f'numbers of neighbours (default: {KS})')
    parser.add_argument(
        '--temperature', type=float, default=0.07, help='default: 0.07')
    run_command(parser, evaluate)
