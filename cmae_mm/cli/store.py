"""Putting a folder of images into one file, for network disks."""
import argparse
from pathlib import Path

from .arguments import add_data, add_out
from .command import Command, Result
from .parser import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser, 'folder of images, e.g. imagenet/train')
    add_out(parser, 'store to write, a folder')
    parser.add_argument(
        '--short-side', type=at_least(1), metavar='PIXELS',
        help='make the shorter side of larger images this long (re-encoded as '
        'JPEG, or as TIFF what JPEG would not keep; default: files are copied '
        'bit by bit)')


def store(args: argparse.Namespace) -> Result:
    """Write the store, with progress."""
    from ..datasets.image_store import read_types, write_store
    from ..datasets.source import IMG_EXTENSIONS
    from ..progress import Progress
    total = 0
    with Progress(0, 'write, then verify') as progress:
        for done, total in write_store(
                Path(args.data), Path(args.out), IMG_EXTENSIONS,
                args.short_side):
            progress.update(done - progress.done, total)
    types = read_types(args.out)
    print(f'{total // 2} images in {args.out}: '
          + ', '.join(f'{count} of {kind}' for kind, count in types.items()))
    return dict(images=total // 2, out=args.out, types=types)


COMMANDS = [
    Command(
        name='store',
        help='put a folder of images into one LMDB file, for network disks',
        description='DATA_ROOT may then name the store in place of the folder.'
        ' Interrupted, the same command goes on where it stopped; what was '
        'written is verified.',
        example='cmae store /data/imagenet/train /data/imagenet.lmdb '
        '--short-side 320',
        add_arguments=add_arguments,
        stopped=lambda args: f'what was written is in {args.out}, and the '
        'same command goes on',
        run=store),
]
