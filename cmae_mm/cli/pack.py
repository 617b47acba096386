"""Pack images into one file, for network disks, or into shards."""
import argparse
from pathlib import Path

from .arguments import add_data, add_out
from .command import Command, Result
from .parser import at_least

_DATA = 'folder of images, list of images, store or shards'
_CONTINUES = (
    'Interrupted, the same command continues; what was written is verified. '
    'Training and all other commands take OUT in place of the folder.')


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cmae store``."""
    add_data(parser, _DATA)
    add_out(parser, 'folder to write, outside of DATA')
    parser.add_argument(
        '--short-side', type=at_least(1), metavar='PIXELS',
        help='reduce the shorter side of larger images to this: JPEG files '
        'become JPEG files of quality 92, all others PNG or TIFF files '
        'without loss (default: files are copied bit by bit)')
    parser.add_argument(
        '--num-workers', type=at_least(0), default=0, metavar='N',
        help='processes that read and reduce images (default: 0, none beside '
        'this one)')


def add_shards_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cmae shards``."""
    add_store_arguments(parser)
    parser.add_argument(
        '--images-per-shard', type=at_least(1), default=2000, metavar='N',
        help='images in a shard (default: 2000, about 200 MB of photographs)')


def pack(args: argparse.Namespace) -> Result:
    """Pack the images, and print what was packed and how."""
    from ..datasets.pack import pack_images
    shards = dict(images_per_shard=args.images_per_shard) if (
        args.command == 'shards') else {}
    found = pack_images(
        args.data, args.out, args.command, short_side=args.short_side,
        num_workers=args.num_workers, **shards)
    print(found['source'])
    where = f'{len(found["shards"])} shards in ' if 'shards' in found else ''
    types = ', '.join(f'{count:,} of {kind}'
                      for kind, count in found.get('types', {}).items())
    print(f'{found["images"]:,} images in {where}{args.out}'
          f'{": " if types else ""}{types}')
    for how, count in found.get('copies', {}).items():
        if args.short_side is not None:
            print(f'{count:,} {how}')
    for how, reason in found.get('reasons', {}).items():
        print(f'first {how}: {reason}')
    return dict(found, out=args.out)


def describe_stop(args: argparse.Namespace) -> str:
    """Say what an interrupted command has left."""
    from ..datasets.pack import PLAN_FILE
    if not (Path(args.out).expanduser() / PLAN_FILE).exists():
        return 'nothing was written'
    return f'what was written is in {args.out}; the same command continues'


COMMANDS = [
    Command(
        name='store',
        help='pack images into one LMDB file, for network disks',
        description=_CONTINUES,
        example='cmae store /data/imagenet/train /data/imagenet.lmdb '
        '--short-side 320',
        add_arguments=add_store_arguments,
        stopped=describe_stop,
        run=pack),
    Command(
        name='shards',
        help='pack images into webdataset shards, for many machines',
        description=f'{_CONTINUES} Shards (.tar) without an index are indexed '
        'where they are.',
        example='cmae shards /data/photos /data/shards --num-workers 8\n'
        'cmae shards /data/laion /data/laion-index',
        add_arguments=add_shards_arguments,
        stopped=describe_stop,
        run=pack),
]
