#!/usr/bin/env python
"""Evaluate an encoder by linear classifiers on its frozen features.

Features are extracted once; one classifier for each learning rate is trained
on them, all at once. Reported are the best one and the whole sweep; the best
is chosen by the test images, as is usual, and is by that much optimistic.
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
from cmae_mm.evaluation import linear_sweep
from cmae_mm.evaluation.linear import LRS
from cmae_mm.evaluation.report import report_sweep


def evaluate(args: argparse.Namespace) -> Dict[str, Any]:
    """Extract, train, print."""
    train, val, _ = extract_for(args)
    predicted = linear_sweep(*train, val.features, args.lrs, args.epochs)
    print(f'linear probe, {len(train.labels)} training and '
          f'{len(val.labels)} test images')
    return report_sweep('lr', predicted, val.labels)


if __name__ == '__main__':
    parser = evaluation_parser(__doc__)
    parser.add_argument(
        '--lrs', type=float, nargs='+', default=LRS,
        help=f'learning rates for a batch of 256 (default: {LRS})')
    parser.add_argument(
        '--epochs', type=int, default=100, help='default: 100')
    run_command(parser, evaluate)
