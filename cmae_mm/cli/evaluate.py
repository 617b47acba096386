"""Evaluating a frozen encoder: k-NN, linear probe, few labels."""
import argparse
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple

from ..config import load_config, remember
from .arguments import (
    RANDOM,
    above_zero,
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_encoder,
    add_launcher,
    add_loader,
    add_pool,
    add_work_dir,
    at_least,
    note_local_rank,
    work_dir_of,
)
from .command import Command, Result

if TYPE_CHECKING:
    from ..evaluation.features import FeatureSet

# Both as in the evaluation room, which a test checks: it is not imported for
# --help.
KS = (5, 10, 20, 50, 100)
LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1., 3.)
DATA = ("The labelled images are those of the config: its `evaluation`, or "
        'class folders in its data root, train/<class>/* and val/<class>/* '
        '(or test/<class>/*).')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of all evaluations."""
    add_config(parser, 'pre-training config: model, data, normalisation; a '
               'file')
    add_checkpoint(
        parser, 'a pre-training checkpoint, an exported backbone, or a '
        'released CMAE or MAE checkpoint', random=True)
    add_encoder(parser)
    add_pool(parser)
    add_loader(parser)
    parser.add_argument(
        '--dtype', choices=['float16', 'float32'], default='float32',
        help='precision that features are kept in (default: float32)')
    add_work_dir(parser, '_eval')
    add_cfg_options(parser)
    add_launcher(parser)


class Extracted(NamedTuple):
    """Features of training and validation images; the former's files."""

    train: 'FeatureSet'
    val: 'FeatureSet'
    train_paths: List[str]


def extract_for(args: argparse.Namespace) -> Extracted:
    """Extract the features that a command line asks for."""
    import torch

    from ..engine import build_frozen_model
    from ..engine.device import adapt_to_device
    from ..evaluation.evaluator import FrozenFeatures
    note_local_rank(args)
    cfg = load_config(args.config, args.cfg_options)
    remember(cfg, args.cfg_options)
    cfg.work_dir = work_dir_of(args, '_eval')
    cfg.launcher, cfg.load_from, cfg.resume = args.launcher, None, False
    adapt_to_device(cfg)
    model = build_frozen_model(cfg, args.checkpoint, args.encoder)
    source = FrozenFeatures(
        model, cfg, args.encoder, args.pool, args.batch_size,
        args.num_workers, getattr(torch, args.dtype), progress=True)
    train = source.datasets['train']
    paths = [train.get_data_info(i).get('img_path', '')
             for i in range(len(train))]
    return Extracted(source.extract('train'), source.extract('val'), paths)


def run_evaluation(evaluate: Callable[[argparse.Namespace, Extracted], Result],
                   args: argparse.Namespace) -> Result:
    """Extract features, evaluate them, and note what was evaluated.

    The result is added to the evaluations in the work folder, where a report
    finds it.
    """
    from mmengine.dist import is_main_process
    features = extract_for(args)
    # The tables of several ranks would mix in one output.
    with nullcontext() if is_main_process() else redirect_stdout(None):
        result = evaluate(args, features)
    found = dict(checkpoint=args.checkpoint, encoder=args.encoder,
                 pool=args.pool, **result)
    note_evaluation(work_dir_of(args, '_eval'), args.command, found)
    return found


def note_evaluation(folder: str, kind: str, result: Result) -> None:
    """Add a result to the evaluations that are noted in a folder."""
    import json
    import os
    from pathlib import Path

    from mmengine.dist import is_main_process

    from ..files import append_line
    from ..visualization.runs import EVALUATIONS
    if not is_main_process():
        return
    checkpoint = str(result['checkpoint'])
    if checkpoint != RANDOM and '://' not in checkpoint:
        checkpoint = os.path.abspath(checkpoint)
    line = json.dumps(dict(result, kind=kind, checkpoint=checkpoint))
    append_line(Path(folder) / EVALUATIONS, line)


def add_knn(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of k-NN."""
    add_arguments(parser)
    parser.add_argument(
        '--ks', type=at_least(1), nargs='+', default=KS, metavar='K',
        help=f'numbers of neighbours (default: {" ".join(map(str, KS))})')
    parser.add_argument(
        '--temperature', type=above_zero, default=0.07, metavar='T',
        help='temperature of the votes (default: 0.07)')


def knn(args: argparse.Namespace, features: Extracted) -> Result:
    """Classify by the nearest neighbours and print the table."""
    from ..evaluation.knn import knn_predict
    from ..evaluation.report import report_sweep
    train, val, _ = features
    predicted = knn_predict(*train, val.features, args.ks, args.temperature)
    print(f'k-NN, {len(train.labels)} training and {len(val.labels)} test '
          'images')
    return report_sweep('k', predicted, val.labels)


def add_linear(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the linear probe."""
    add_arguments(parser)
    parser.add_argument(
        '--lrs', type=above_zero, nargs='+', default=LRS, metavar='LR',
        help='learning rates for a batch of 256, all tried side by side '
        f'(default: {" ".join(f"{lr:g}" for lr in LRS)})')
    parser.add_argument(
        '--epochs', type=at_least(1), default=100, metavar='N',
        help='passes over the training features (default: 100)')


def linear(args: argparse.Namespace, features: Extracted) -> Result:
    """Train linear classifiers and print the table."""
    from ..evaluation.linear import linear_sweep
    from ..evaluation.report import report_sweep
    train, val, _ = features
    predicted = linear_sweep(*train, val.features, args.lrs, args.epochs)
    print(f'linear probe, {len(train.labels)} training and '
          f'{len(val.labels)} test images')
    return report_sweep('lr', predicted, val.labels)


def add_low_shot(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of few-label evaluation."""
    add_arguments(parser)
    parser.add_argument(
        '--shots', type=at_least(1), nargs='*', default=[1, 5, 10],
        metavar='N', help='labelled images a class (default: 1 5 10)')
    parser.add_argument(
        '--trials', type=at_least(1), default=5, metavar='N',
        help='draws of each number (default: 5)')
    parser.add_argument(
        '--splits', nargs='*', default=[], metavar='FILE',
        help='split files of the training images, see `cmae splits`')
    parser.add_argument(
        '--inverse-penalty', type=above_zero, default=1., metavar='C',
        help="scikit-learn's C (default: 1)")


def low_shot(args: argparse.Namespace, features: Extracted) -> Result:
    """Fit logistic regressions to a few labels and print the table."""
    import statistics
    from pathlib import Path

    from ..evaluation.features import FeatureSet
    from ..evaluation.low_shot import fit_logistic_regression
    from ..evaluation.low_shot import low_shot as measure_low_shot
    from ..evaluation.report import print_table, score
    from ..evaluation.splits import read_split
    train, val, paths = features
    result: Dict[str, Any] = {}
    rows = []
    drawn = measure_low_shot(train, val, args.shots, args.trials,
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
        rows.append([Path(split).stem, str(scored)])
        result[Path(split).stem] = scored.top1
    print(f'logistic regression, {args.trials} draws (mean and standard '
          f'deviation), {len(val.labels)} test images')
    print_table(['labels', 'top-1 %'], rows)
    return result


COMMANDS = [
    Command(
        name='knn',
        help='classify by the nearest neighbours of frozen features',
        description=f'Nothing is trained. {DATA}',
        example='cmae knn cmae_vit-b_300e '
        'work_dirs/cmae_vit-b_300e/epoch_300.pth --json',
        add_arguments=add_knn,
        run=partial(run_evaluation, knn)),
    Command(
        name='linear',
        help='train a linear classifier on frozen features',
        description=DATA,
        example='cmae linear cmae_vit-b_300e '
        'work_dirs/cmae_vit-b_300e/epoch_300.pth --json',
        add_arguments=add_linear,
        run=partial(run_evaluation, linear)),
    Command(
        name='low-shot',
        help='fit a logistic regression to a few labels a class',
        description=DATA,
        example='cmae low-shot cmae_vit-b_300e '
        'work_dirs/cmae_vit-b_300e/epoch_300.pth --shots 1 5',
        add_arguments=add_low_shot,
        run=partial(run_evaluation, low_shot)),
]
