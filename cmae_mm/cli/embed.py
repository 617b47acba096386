"""Features of a folder of images."""
import argparse
from typing import Any, Dict

from ..apis.checks import DTYPES, POOLS, check_embedding
from .arguments import add_checkpoint, add_data, add_encoder
from .command import Command, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser)
    add_checkpoint(
        parser, 'pre-training checkpoint, exported backbone, fine-tuned '
        'classifier, or released CMAE or MAE checkpoint')
    parser.add_argument(
        '--out', metavar='FILE', required=True,
        help='file to write, .npz or .parquet')
    add_encoder(parser)
    parser.add_argument(
        '--pool', choices=POOLS, default='mean',
        help='mean of the patch tokens (default), class token, or all patch '
        'tokens')
    parser.add_argument(
        '--batch-size', type=int, default=64, metavar='N',
        help='images at a time (default: 64)')
    parser.add_argument(
        '--num-workers', type=int, metavar='N',
        help='processes that read images (default: one for each processor '
        'core, at most 8)')
    parser.add_argument(
        '--img-size', type=int, metavar='N',
        help="side of the images in pixels (default: the checkpoint's)")
    parser.add_argument(
        '--stats', metavar='FILE',
        help='what `cmae stats` wrote about the images, for a foreign '
        'checkpoint that does not say how they are normalised')
    parser.add_argument(
        '--num-heads', type=int, metavar='N',
        help='attention heads, for a foreign checkpoint of unusual sizes')
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float32',
        help='features are kept in (default: float32)')


def options_of(args: argparse.Namespace) -> Dict[str, Any]:
    """Give the options as arguments of the function."""
    return dict(
        encoder=args.encoder, pool=args.pool, batch_size=args.batch_size,
        num_workers=args.num_workers, img_size=args.img_size,
        dtype=args.dtype, stats=args.stats)


def check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded."""
    check_embedding(args.data, args.checkpoint, args.out, **options_of(args))


def embed(args: argparse.Namespace) -> Result:
    """Compute features and write them."""
    import cmae_mm
    found = cmae_mm.embed(args.data, args.checkpoint, args.out,
                          num_heads=args.num_heads, **options_of(args))
    shape = 'x'.join(str(n) for n in found.shape[1:])
    print(f'{found.shape[0]:,} images, {shape} numbers each, in {found.out}')
    for path, reason in list(found.skipped.items())[:5]:
        print(f'skipped {path}: {reason}')
    if found.skipped:
        print(f'{len(found.skipped):,} images could not be read; '
              f'{found.out}.skipped.txt lists them')
    return dict(
        out=str(found.out), shape=list(found.shape),
        skipped=len(found.skipped), encoder=args.encoder, pool=args.pool)


COMMANDS = [
    Command(
        name='embed',
        help='compute features of any folder of images',
        example='cmae embed photos work_dirs/vit-s_photos/epoch_100.pth --out '
        'features.npz',
        description='No labels and no config are needed. Features are those '
        'of `cmae knn`. Interrupted, the same command goes on. Images that '
        'cannot be read are left out and listed.',
        add_arguments=add_arguments,
        check=check,
        stopped=lambda args: f'what was computed is in {args.out}.parts, and '
        'the same command goes on',
        run=embed),
]
