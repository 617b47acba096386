"""Pre-training on a folder of images, by one line."""
import argparse

from ..apis.checks import MODELS, check_pretraining
from ..config import parse_options
from .arguments import (
    add_cfg_options,
    add_data,
    add_launcher,
    add_log_to,
    note_local_rank,
)
from .command import Command, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(
        parser, 'folder of images, with class folders or none (of DATA/train '
        'where there is one), list of paths, store or shards')
    parser.add_argument(
        '--model', default='vit-b', metavar='|'.join(MODELS),
        help='what to train; mini is for 64-pixel images and a CPU (default: '
        'vit-b)')
    parser.add_argument(
        '--epochs', type=int, metavar='N',
        help="how often to go through the images (default: the recipe's, 300 "
        'or 800; mini: what 300 steps take)')
    parser.add_argument(
        '--batch-size', type=int, metavar='N',
        help='images of each process (default: what fits into the memory and '
        'leaves 4 steps or more an epoch)')
    parser.add_argument(
        '--num-workers', type=int, metavar='N',
        help='processes that read images (default: one for each processor '
        'core, at most 8)')
    parser.add_argument(
        '--stats', metavar='FILE',
        help='what `cmae stats` wrote about the images, for others than '
        'colours of 8 bits, or for their own mean and deviation')
    parser.add_argument(
        '--init', metavar='FILE',
        help='checkpoint whose encoder both branches start from: of CMAE, MAE,'
        " or a plain vision transformer under timm's names, as DINO's")
    parser.add_argument(
        '--out', metavar='DIR',
        help='folder of logs and checkpoints (default: work_dirs/<model>_'
        '<folder of DATA>)')
    parser.add_argument(
        '--no-resume', action='store_true',
        help='start anew although there are checkpoints, which are moved to '
        'previous_<N>')
    add_log_to(parser)
    add_cfg_options(parser)
    add_launcher(parser)


def check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded."""
    check_pretraining(args.data, args.model, args.epochs, args.batch_size,
                      args.num_workers, args.out, args.stats, args.init,
                      args.log_to)


def pretrain(args: argparse.Namespace) -> Result:
    """Make the config and train."""
    from mmengine.dist import is_main_process

    import cmae_mm
    note_local_rank(args)
    done = cmae_mm.pretrain(
        args.data,
        args.model,
        epochs=args.epochs,
        batch_size=args.batch_size,
        out=args.out,
        num_workers=args.num_workers,
        stats=args.stats,
        init=args.init,
        cfg_options=parse_options(args.cfg_options),
        resume=not args.no_resume,
        log_to=args.log_to,
        launcher=args.launcher)
    if is_main_process():
        print(f'Pre-trained: {done.checkpoint}\nFor its features: cmae embed '
              f'{args.data} {done.checkpoint} --out features.npz')
    return {name: str(path) for name, path in done._asdict().items()}


COMMANDS = [
    Command(
        name='pretrain',
        help='pre-train on any folder of images',
        example='cmae pretrain photos --model vit-s --epochs 100\n'
        'torchrun --nproc_per_node 8 -m cmae_mm pretrain photos --launcher '
        'pytorch\n'
        'tools/dist_train.sh work_dirs/vit-b_photos/config.py 8',
        description='A packaged recipe is fitted to the images and the '
        'machine. The command says which config it made and writes it to '
        'config.py in the folder, which `cmae train` and tools/dist_train.sh '
        'take as well. The learning rate is scaled to the batch, unless '
        '--cfg-options gives one; warm-up takes 40 of 300 epochs and never '
        'more than 40. The same command again goes on where it stopped.',
        add_arguments=add_arguments,
        check=check,
        stopped=lambda args: 'the last checkpoint, if one was saved, is in '
        'the folder of the training, and the same command goes on',
        run=pretrain),
]
