"""Evaluating frozen patch features by segmentation."""
import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple

from ..config import ConfigError, load_config, remember
from .arguments import (
    above_zero,
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_encoder,
    add_work_dir,
    at_least,
    check_data,
    work_dir_of,
)
from .command import Command, Result
from .evaluate import LRS, note_evaluation

if TYPE_CHECKING:
    from ..apis.dense_probe import DenseSet
    from ..apis.pretrained_encoder import PretrainedEncoder

DENSE_KS = (1, 5, 20, 50)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both probes."""
    add_config(parser, 'pre-training config: model and normalisation; a file')
    add_checkpoint(
        parser, 'a pre-training checkpoint, an exported backbone, or a '
        'released CMAE or MAE checkpoint', random=True)
    parser.add_argument(
        '--images', nargs=2, required=True, metavar=('TRAIN', 'VAL'),
        help='folders of images, or lists, stores or shards')
    parser.add_argument(
        '--maps', nargs=2, required=True, metavar=('TRAIN', 'VAL'),
        help='folders of maps: PNG files of the same names, one whole number '
        'a pixel')
    parser.add_argument(
        '--ignore', type=int, nargs='*', default=[0], metavar='VALUE',
        help='values of maps that are no class (default: 0)')
    parser.add_argument(
        '--most', type=at_least(2), metavar='N',
        help='the N classes with the most training pixels; others are '
        'ignored (default: all)')
    parser.add_argument(
        '--img-size', type=at_least(1), metavar='PIXELS',
        help="side that images are resized to (default: the config's)")
    add_encoder(parser)
    parser.add_argument(
        '--batch-size', type=at_least(1), default=32, metavar='N',
        help='images at once (default: 32)')
    add_work_dir(parser, '_eval')
    add_cfg_options(parser)


def check(args: argparse.Namespace) -> None:
    """Look for the folders.

    Raises:
        FileNotFoundError: If images are not there.
        ConfigError: If a folder of maps is not there.
    """
    for name in args.images:
        check_data(name)
    for folder in args.maps:
        if not Path(folder).is_dir():
            raise ConfigError(f'there is no folder {folder}')


class Dense(NamedTuple):
    """What a probe is trained and scored on."""

    train: 'DenseSet'
    val: 'DenseSet'
    patch_size: int
    classes: int


def load(args: argparse.Namespace) -> 'PretrainedEncoder':
    """Load the encoder that a command line asks for."""
    from ..apis.encoder import encoder_of
    from ..engine import build_frozen_model
    from ..engine.device import adapt_to_device
    from ..image_config import image_settings
    cfg = load_config(args.config, args.cfg_options)
    remember(cfg, args.cfg_options)
    cfg.work_dir = work_dir_of(args, '_eval')
    cfg.launcher, cfg.load_from, cfg.resume = 'none', None, False
    adapt_to_device(cfg)
    model = build_frozen_model(cfg, args.checkpoint, args.encoder)
    encoder = encoder_of(model, args.encoder, args.img_size,
                         image_settings(cfg))
    return encoder.to(next(model.parameters()).device)


def run_probe(probe: Callable[[argparse.Namespace, Dense], Dict[Any, Any]],
              args: argparse.Namespace) -> Result:
    """Extract patch features, probe them, and note what was evaluated."""
    from ..apis.dense_probe import classes_of, extract_dense, pair_files
    from ..evaluation.dense import confusions, dense_score
    from ..evaluation.report import print_table
    train, val = (pair_files(Path(images), Path(maps))
                  for images, maps in zip(args.images, args.maps))
    encoder = load(args)
    classes = classes_of(train, encoder.img_size, args.ignore, args.most)
    dense = Dense(
        extract_dense(encoder, train, classes, args.batch_size),
        extract_dense(encoder, val, classes, args.batch_size),
        encoder.patch_size, len(classes))
    scores = {
        name: dense_score(confusions(
            found.view(len(val), -1), dense.val.maps, len(classes)))
        for name, found in probe(args, dense).items()}
    best = max(scores, key=lambda name: scores[name].miou)
    print(f'{args.command}, {len(train)} training and {len(val)} test images, '
          f'{len(classes)} classes')
    print_table(
        ['', 'mIoU %', 'pixels %'],
        [[f'{name}{" *" if name == best else ""}',
          f'{s.miou:.2f} [{s.interval[0]:.2f}, {s.interval[1]:.2f}]',
          f'{s.pixel_accuracy:.2f}'] for name, s in scores.items()])
    result: Result = dict(
        miou=scores[best].miou, pixel_accuracy=scores[best].pixel_accuracy,
        interval=scores[best].interval, best=str(best),
        all={str(name): s.miou for name, s in scores.items()})
    note_evaluation(work_dir_of(args, '_eval'), args.command, dict(
        checkpoint=args.checkpoint, encoder=args.encoder, **result))
    return result


def add_knn(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of k-NN."""
    add_arguments(parser)
    parser.add_argument(
        '--ks', type=at_least(1), nargs='+', default=DENSE_KS, metavar='K',
        help='numbers of neighbours (default: '
        f'{" ".join(map(str, DENSE_KS))})')


def knn(args: argparse.Namespace, dense: Dense) -> Dict[Any, Any]:
    """Classify each patch by the nearest ones."""
    from ..evaluation.knn import knn_predict
    found = knn_predict(*dense.train.labelled(dense.patch_size),
                        dense.val.features.flatten(0, 1), args.ks)
    return {f'k = {k}': labels for k, labels in found.items()}


def add_linear(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the linear probe."""
    add_arguments(parser)
    parser.add_argument(
        '--lrs', type=above_zero, nargs='+', default=LRS, metavar='LR',
        help='learning rates for a batch of 256 patches, all tried side by '
        f'side (default: {" ".join(f"{lr:g}" for lr in LRS)})')
    parser.add_argument(
        '--epochs', type=at_least(1), default=50, metavar='N',
        help='passes over the training patches (default: 50)')


def linear(args: argparse.Namespace, dense: Dense) -> Dict[Any, Any]:
    """Classify each patch by a linear layer."""
    from ..evaluation.linear import linear_sweep
    found = linear_sweep(*dense.train.labelled(dense.patch_size),
                         dense.val.features.flatten(0, 1), args.lrs,
                         args.epochs)
    return {f'lr = {lr:g}': labels for lr, labels in found.items()}


_WHAT = ('Each image is resized to a square, each patch has the class of most '
         'of its labelled pixels, and the prediction for a patch counts for '
         'all of its pixels. Scores are of the classes that there are.')
_EXAMPLE = ('cmae_vit-b_300e epoch_300.pth --images data/images/train '
            'data/images/val --maps data/maps/train data/maps/val')
COMMANDS = [
    Command(
        name='dense-knn',
        help='segment images by the nearest neighbours of frozen patches',
        description=f'Nothing is trained. {_WHAT}',
        example=f'cmae dense-knn {_EXAMPLE}',
        add_arguments=add_knn,
        check=check,
        run=partial(run_probe, knn)),
    Command(
        name='dense-linear',
        help='segment images by a linear classifier on frozen patches',
        description=_WHAT,
        example=f'cmae dense-linear {_EXAMPLE}',
        add_arguments=add_linear,
        check=check,
        run=partial(run_probe, linear)),
]
