"""Putting a folder of images into webdataset shards, for many machines."""
import argparse
from pathlib import Path

from .arguments import add_data, add_out
from .command import Command, Result
from .parser import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser, 'folder of images, or of shards that lack an index')
    add_out(parser, 'folder for shards and index')
    parser.add_argument(
        '--images-per-shard', type=at_least(1), default=2000, metavar='N',
        help='images in a shard (default: 2000, about 200 MB of photographs)')
    parser.add_argument(
        '--short-side', type=at_least(1), metavar='PIXELS',
        help='make the shorter side of larger images this long (re-encoded as '
        'JPEG; default: files are copied bit by bit)')
    parser.add_argument(
        '--num-workers', type=at_least(0), default=0, metavar='N',
        help='processes that read and shrink images (default: 0, none but '
        'this one)')


def shards(args: argparse.Namespace) -> Result:
    """Write the shards, with progress."""
    from ..datasets.shard_writing import write_shards
    from ..datasets.source import IMG_EXTENSIONS, read_shard_index
    from ..progress import Progress
    with Progress(0, 'write, then verify') as progress:
        for done, total in write_shards(
                Path(args.data).expanduser(), Path(args.out).expanduser(),
                IMG_EXTENSIONS, args.images_per_shard, args.short_side,
                args.num_workers):
            progress.update(done - progress.done, total)
    index = read_shard_index(Path(args.out).expanduser())
    count = len(index['shards'])
    print(f'{index["images"]} images in {count} shards, indexed in {args.out}')
    return dict(images=index['images'], shards=count, out=args.out)


COMMANDS = [
    Command(
        name='shards',
        help='put a folder of images into webdataset shards, for many '
        'machines',
        description='DATA_ROOT may then name the folder of shards in place of '
        'the folder. Interrupted, the same command goes on after the last '
        'whole shard; what was written is verified. If DATA holds shards '
        '(.tar) instead of images, they are indexed and stay where they are.',
        example='cmae shards /data/photos /data/shards --num-workers 8\n'
        'cmae shards /data/laion /data/laion-index',
        add_arguments=add_arguments,
        run=shards),
]
