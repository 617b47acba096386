"""Maps of a folder's images, and the nearest images of an image."""
import argparse
from typing import Any, Dict

from .arguments import (
    add_checkpoint,
    add_data,
    add_encoder,
    add_loader,
    add_pool,
    at_least,
)
from .command import Command, Result
from .pictures import (
    ENCODERS,
    add_images,
    add_picture,
    add_seed,
    add_shown,
    add_sizes,
)

# As in the visualisation room, which a test checks.
METHODS = ('auto', 'umap', 'tsne')


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what both commands have."""
    parser.add_argument(
        '--features', metavar='FILE',
        help='.npz file to keep the features in, and to read them from '
        'another time')
    add_encoder(parser)
    add_pool(parser)
    add_loader(parser, 64)
    add_sizes(parser)
    add_shown(parser)


def options_of(args: argparse.Namespace) -> Dict[str, Any]:
    """Give the options as arguments of the functions."""
    return dict(
        features=args.features, encoder=args.encoder, pool=args.pool,
        batch_size=args.batch_size, num_workers=args.num_workers,
        img_size=args.img_size, num_heads=args.num_heads, channels=args.show)


def add_map(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the map."""
    add_data(parser)
    add_checkpoint(parser, ENCODERS)
    add_picture(parser, 'map.png')
    parser.add_argument(
        '--method', choices=METHODS, default='auto',
        help='UMAP, t-SNE, or UMAP where it is installed (default: auto)')
    parser.add_argument(
        '--most', type=at_least(2), default=1000, metavar='N',
        help='images on the map, evenly spaced (default: 1000)')
    parser.add_argument(
        '--thumbnail', type=at_least(8), default=48, metavar='PIXELS',
        help='side of a thumbnail (default: 48)')
    add_common(parser)
    add_seed(parser, 'layout')


def check_map(args: argparse.Namespace) -> None:
    """Look for UMAP, where it is asked for.

    Raises:
        ImportError: If it is missing.
    """
    import importlib.util

    from ..packaged import install_command
    if args.method == 'umap' and not importlib.util.find_spec('umap'):
        raise ImportError(
            '--method umap needs umap-learn, which is not installed: install '
            f'it with `{install_command("map")}`, or take --method tsne')


def draw(args: argparse.Namespace) -> Result:
    """Draw the map."""
    from ..apis.maps import map_images
    made = map_images(
        args.data, args.checkpoint, args.out, method=args.method,
        most=args.most, thumbnail=args.thumbnail, seed=args.seed,
        **options_of(args))
    name = dict(umap='UMAP', tsne='t-SNE')[made.method]
    print(f'Wrote {made.out}: {len(made.paths):,} images, laid out by {name}')
    return dict(out=str(made.out), images=len(made.paths), method=made.method)


def add_nearest(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of finding images."""
    add_data(parser)
    add_checkpoint(parser, ENCODERS)
    add_images(parser, 'images to look for, files')
    add_picture(parser, 'nearest.png')
    parser.add_argument(
        '--count', type=at_least(1), default=8, metavar='N',
        help='images to find for each (default: 8)')
    add_common(parser)


def find(args: argparse.Namespace) -> Result:
    """Find the nearest images, and list them."""
    from ..apis.maps import nearest_images
    made = nearest_images(args.data, args.checkpoint, args.images, args.out,
                          count=args.count, **options_of(args))
    for image, found in made.found.items():
        print(f'nearest to {image}:')
        for path, cosine in found:
            print(f'  {cosine:.4f}  {path}')
    print(f'Wrote {made.out}')
    return dict(out=str(made.out), found=made.found)


COMMANDS = [
    Command(
        name='map',
        help='draw a folder of images on a map by their features',
        description='What is alike to the encoder is near on the map. Images '
        'in class folders are framed by class.',
        example='cmae map photos work_dirs/vit-s_photos/epoch_100.pth',
        add_arguments=add_map,
        check=check_map,
        run=draw),
    Command(
        name='nearest',
        help='find the images of a folder that are most like an image',
        example='cmae nearest photos work_dirs/vit-s_photos/epoch_100.pth '
        'photos/cat.jpg',
        add_arguments=add_nearest,
        run=find),
]
