#!/usr/bin/env python
"""Evaluate an encoder with few labels: logistic regression on its features.

A few images a class, drawn several times with seeds from 0; and, with
--splits, the images of split files that make_splits.py wrote.
"""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
import statistics
from pathlib import Path
from typing import Any, Dict

from cmae_mm.cli.evaluation import (
    evaluation_parser,
    extract_for,
    run_command,
)
from cmae_mm.evaluation import (
    FeatureSet,
    fit_logistic_regression,
    low_shot,
    score,
)
from cmae_mm.evaluation.report import print_table
from cmae_mm.evaluation.splits import read_split


def evaluate(args: argparse.Namespace) -> Dict[str, Any]:
    """Extract, fit, print."""
    train, val, paths = extract_for(args)
    result: Dict[str, Any] = {}
    rows = []
    drawn = low_shot(train, val, args.shots, args.trials,
                     args.inverse_penalty)
    for shots, accuracies in drawn.items():
        mean = statistics.mean(accuracies)
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.
        rows.append([f'{shots} a class', f'{mean:.2f} +- {spread:.2f}'])
        result[str(shots)] = mean
        result[f'{shots}_std'] = spread
    for split in args.splits:
        index = read_split(split, paths)
        few = FeatureSet(train.features[index], train.labels[index])
        predicted = fit_logistic_regression(few, val, args.inverse_penalty)
        scored = score(predicted, val.labels)
        rows.append([Path(split).stem, scored])
        result[Path(split).stem] = scored.top1
    print(f'logistic regression, {args.trials} draws (mean and standard '
          f'deviation), {len(val.labels)} test images')
    print_table(['labels', 'top-1 %'], rows)
    return result


if __name__ == '__main__':
    parser = evaluation_parser(__doc__)
    parser.add_argument(
        '--shots', type=int, nargs='*', default=[1, 5, 10],
        help='images a class (default: 1 5 10)')
    parser.add_argument(
        '--trials', type=int, default=5, help='draws of each (default: 5)')
    parser.add_argument(
        '--splits', nargs='*', default=[], metavar='FILE',
        help='split files of the training images')
    parser.add_argument(
        '--inverse-penalty', type=float, default=1.,
        help="scikit-learn's C (default: 1)")
    run_command(parser, evaluate)
