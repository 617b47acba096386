"""Drawing which images keep their labels."""
import argparse
from pathlib import Path

from ..files import check_output
from .arguments import add_data
from .command import Command, Result
from .parser import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser, 'data folder, with train/<class>/*.jpg, or a list with '
             'labels')
    parser.add_argument(
        '--percent', type=float, nargs='+', default=[1., 10.],
        help='shares of the images of each class (default: 1 10)')
    parser.add_argument(
        '--seed', type=at_least(0), default=0, metavar='N',
        help='the same one draws the same images (default: 0)')
    parser.add_argument(
        '--out', metavar='DIR',
        help='folder to write to (default: DATA/splits, or splits beside a '
        'list)')


def check(args: argparse.Namespace) -> None:
    """Check the shares, and whether they can be written.

    Raises:
        OSError: If nothing can be written there.
        ValueError: If a share is not above 0 and at most 100.
    """
    check_output(_out(args), is_folder=True)
    for percent in args.percent:
        if not 0 < percent <= 100:
            raise ValueError('--percent must be above 0 and at most 100, but '
                             f'got {percent:g}')


def _out(args: argparse.Namespace) -> Path:
    data = Path(args.data).expanduser()
    return Path(args.out or (
        data.parent if data.is_file() else data) / 'splits')


def splits(args: argparse.Namespace) -> Result:
    """Draw and write."""
    from mmengine.registry import init_default_scope

    from ..evaluation import build_eval_dataset
    from ..evaluation.splits import write_split
    init_default_scope('mmpretrain')
    # A list without a column of splits is a list of training images.
    kind = 'PretrainingDataset' if Path(
        args.data).expanduser().is_file() else 'LabelledDataset'
    dataset = build_eval_dataset(dict(
        type=kind, data_root=args.data, split='train', with_label=True,
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
        '<percent>pct_seed<seed>.txt',
        example='cmae splits /data/imagenet --percent 1 10',
        add_arguments=add_arguments,
        check=check,
        run=splits),
]
