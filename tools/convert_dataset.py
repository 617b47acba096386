#!/usr/bin/env python
"""Put a folder of images into one LMDB file, for network disks.

DATA_ROOT may then name the store in place of the folder. Interrupted, the
same command goes on where it stopped; what was written is verified.
"""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
from pathlib import Path

from tqdm import tqdm

from cmae_mm.cli.command import run
from cmae_mm.cli.config import add_debug_option
from cmae_mm.datasets.image_store import write_store
from cmae_mm.datasets.pretraining_dataset import IMG_EXTENSIONS


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'source', type=Path, help='folder of images, e.g. imagenet/train')
    parser.add_argument('out', type=Path, help='store to write, a folder')
    parser.add_argument(
        '--short-side', type=int,
        help='make the shorter side of larger images this long, in pixels '
        '(re-encoded as JPEG; default: files are copied bit by bit)')
    add_debug_option(parser)
    args = parser.parse_args()
    if args.short_side is not None and args.short_side < 1:
        parser.error('--short-side must be 1 pixel or more')
    if not args.source.is_dir():
        parser.error(f'there is no folder {args.source}')
    progress = tqdm(unit='image', desc='write, then verify')
    try:
        for done, total in write_store(args.source, args.out, IMG_EXTENSIONS,
                                       args.short_side):
            progress.total = total
            progress.update(done - progress.n)
    finally:
        progress.close()
    print(f'{total // 2} images in {args.out}')


if __name__ == '__main__':
    run(main)
