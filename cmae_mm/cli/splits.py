"""Drawing which images keep their labels."""
import argparse
from pathlib import Path

from ..files import check_output
from .arguments import add_data, check_folder
from .command import Command, Result
from .parser import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser, 'data folder, with train/<class>/*.jpg')
    parser.add_argument(
        '--percent', type=float, nargs='+', default=[1., 10.],
        help='shares of the images of each class (default: 1 10)')
    parser.add_argument(
        '--seed', type=at_least(0), default=0, metavar='N',
        help='the same one draws the same images (default: 0)')
    parser.add_argument(
        '--out', metavar='DIR',
        help='folder to write to (default: DATA/splits)')


def check(args: argparse.Namespace) -> None:
    """Look for the training images, and at the shares.

    Raises:
        FileNotFoundError: If there is no folder of them.
        ValueError: If a share is none.
    """
    check_folder(str(Path(args.data) / 'train'))
    check_output(_out(args), is_folder=True)
    for percent in args.percent:
        if not 0 < percent <= 100:
            raise ValueError('--percent must be above 0 and at most 100, but '
                             f'got {percent:g}')


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out or Path(args.data) / 'splits')


def splits(args: argparse.Namespace) -> Result:
    """Draw and write."""
    from mmengine.registry import init_default_scope

    from ..evaluation import build_eval_dataset
    from ..evaluation.splits import write_split
    init_default_scope('mmpretrain')
    dataset = build_eval_dataset(
        dict(
            type='LabelledDataset', data_root=args.data, data_prefix='train',
            pipeline=[]))
    folder = _out(args)
    files = {}
    for percent in args.percent:
        path = str(folder / f'{percent:g}pct_seed{args.seed}.txt')
        files[path] = write_split(dataset, percent, args.seed, path)
        print(f'{path}: {files[path]} of {len(dataset)} images')
    return dict(images=len(dataset), files=files)


COMMANDS = [
    Command(
        name='splits',
        help='draw which images keep their labels, for training on few',
        description='Writes annotation files of LabelledDataset: '
        'DATA/splits/<percent>pct_seed<seed>.txt',
        example='cmae splits /data/imagenet --percent 1 10',
        add_arguments=add_arguments,
        check=check,
        run=splits),
]
