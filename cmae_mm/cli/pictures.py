"""Pictures of views, reconstructions, attention and features."""
import argparse
from typing import Any

from ..config import load_config, remember
from .arguments import (
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_encoder,
    at_least,
)
from .command import Command, Result

ENCODERS = ('pre-training checkpoint, exported backbone, fine-tuned '
            'classifier, or released CMAE or MAE checkpoint')


def add_images(parser: argparse.ArgumentParser, what: str = '') -> None:
    """Add IMAGES, files or folders."""
    parser.add_argument(
        'images', metavar='IMAGES', nargs='+',
        help=what or 'image files, or folders of which --most are taken')


def add_picture(parser: argparse.ArgumentParser, name: str) -> None:
    """Add ``--out``, a picture."""
    parser.add_argument(
        '--out', metavar='FILE', default=name,
        help=f'picture to write, .png, .jpg or .webp (default: {name})')


def add_most(parser: argparse.ArgumentParser) -> None:
    """Add ``--most``."""
    parser.add_argument(
        '--most', type=at_least(1), default=8, metavar='N',
        help='images that are taken of a folder, evenly spaced (default: 8)')


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add what a foreign checkpoint may not say."""
    parser.add_argument(
        '--img-size', type=at_least(1), metavar='N',
        help="side of the images in pixels (default: the checkpoint's)")
    parser.add_argument(
        '--num-heads', type=at_least(1), metavar='N',
        help='attention heads, for a foreign checkpoint of unusual sizes')


def add_shown(parser: argparse.ArgumentParser) -> None:
    """Add ``--show``, the channels that pictures have."""
    parser.add_argument(
        '--show', type=at_least(0), nargs='+', metavar='CHANNEL',
        help='three channels that are shown as red, green and blue, or one in '
        'grey, numbered from 0 (default: three as they are, the mean of '
        'others in grey)')


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--seed``."""
    parser.add_argument(
        '--seed', type=at_least(0), default=0, metavar='N',
        help=f'seed of the {what} (default: 0)')


def say(picture: Any) -> Result:
    """Say what was written, and give it for ``--json``."""
    print(f'Wrote {picture.out}: {", ".join(picture.columns)}')
    return dict(out=str(picture.out), columns=picture.columns,
                images=[str(p) for p in getattr(picture, 'images', [])])


def add_views(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of showing views."""
    add_config(parser, 'pre-training config: a file')
    add_picture(parser, 'views.png')
    parser.add_argument(
        '--most', type=at_least(1), default=8, metavar='N',
        help='number of images (default: 8)')
    add_shown(parser)
    add_cfg_options(parser)


def views(args: argparse.Namespace) -> Result:
    """Draw the views of a config."""
    from ..apis.views import show_views
    cfg = load_config(args.config, args.cfg_options)
    remember(cfg, args.cfg_options)
    made = show_views(cfg, args.out, args.most, args.show)
    return dict(say(made), shifts=made.shifts)


def add_reconstruct(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of reconstructing."""
    add_checkpoint(parser, 'pre-training checkpoint; a released CMAE one '
                   'needs --config')
    add_images(parser)
    add_picture(parser, 'reconstruction.png')
    add_most(parser)
    parser.add_argument(
        '--config', dest='model_config', metavar='CONFIG',
        help="config of the model (default: the checkpoint's own)")
    add_shown(parser)
    add_seed(parser, 'masks')


def check_reconstruct(args: argparse.Namespace) -> None:
    """Look for the config, where one is named."""
    if args.model_config is not None:
        from ..packaged import find_config
        find_config(args.model_config)


def reconstruct(args: argparse.Namespace) -> Result:
    """Show what a model makes of masked images."""
    from ..apis.pictures import reconstruct
    made = reconstruct(
        args.checkpoint, args.images, args.out, config=args.model_config,
        most=args.most, channels=args.show, seed=args.seed)
    result = say(made)
    if len(made.columns) == 4:
        print('The loss normalises the pixels of each patch, so that the '
              'prediction itself has no brightness or contrast of its own: '
              'the third column is no fault. In the last one each patch has '
              "been given the true patch's mean and deviation.")
    return result


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of showing attention."""
    add_checkpoint(parser, ENCODERS)
    add_images(parser)
    add_picture(parser, 'attention.png')
    add_most(parser)
    parser.add_argument(
        '--layer', type=int, default=-1, metavar='N',
        help='layer, counted from 1, or from the end by a negative number '
        '(default: -1, the last)')
    parser.add_argument(
        '--heads', action='store_true', help='show each head beside the mean')
    add_shown(parser)
    add_encoder(parser)
    add_sizes(parser)


def attention(args: argparse.Namespace) -> Result:
    """Show what the class token looks at."""
    from ..apis.pictures import attention
    return say(attention(
        args.checkpoint, args.images, args.out, encoder=args.encoder,
        layer=args.layer, heads=args.heads, most=args.most,
        channels=args.show, img_size=args.img_size, num_heads=args.num_heads))


def add_features(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of showing patch features."""
    add_checkpoint(parser, ENCODERS)
    add_images(parser)
    add_picture(parser, 'features.png')
    add_most(parser)
    add_shown(parser)
    add_encoder(parser)
    add_sizes(parser)


def features(args: argparse.Namespace) -> Result:
    """Show patch features as colours."""
    from ..apis.pictures import features
    return say(features(
        args.checkpoint, args.images, args.out, encoder=args.encoder,
        most=args.most, channels=args.show, img_size=args.img_size,
        num_heads=args.num_heads))


COMMANDS = [
    Command(
        name='views',
        help='show the views of a config as the network will get them',
        description='A grid of the canvas with both windows, the online view, '
        'what the encoder sees of it, and the target view, of the first '
        'images of a training.',
        example='cmae views cmae_vit-s_300e\n'
        'cmae views cmae_vit-s_300e --cfg-options '
        'data_preprocessor.max_shift=0 --out no_shift.png',
        add_arguments=add_views,
        run=views),
    Command(
        name='reconstruct',
        help='show what a pre-trained model makes of masked images',
        description='Input, what is visible of it, the prediction as it is, '
        "and with each patch's own mean and deviation put back. The model is "
        'built by the config that the checkpoint holds as text; nothing in '
        'the file is run.',
        example='cmae reconstruct work_dirs/vit-s_photos/epoch_100.pth '
        'photo1.jpg photo2.jpg\n'
        'cmae reconstruct cmae_official.pth photos --config cmae_vit-b_300e',
        add_arguments=add_reconstruct,
        check=check_reconstruct,
        run=reconstruct),
    Command(
        name='attention',
        help='show which patches the class token attends to',
        example='cmae attention work_dirs/vit-s_photos/epoch_100.pth photos '
        '--heads',
        add_arguments=add_attention,
        run=attention),
    Command(
        name='features',
        help='show patch features as colours, by principal components',
        description='Red, green and blue are the first three components of '
        'the patch features of all images together: what is alike to the '
        'encoder has one colour.',
        example='cmae features work_dirs/vit-s_photos/epoch_100.pth photos',
        add_arguments=add_features,
        run=features),
]
