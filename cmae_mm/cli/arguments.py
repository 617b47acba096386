"""Arguments that several commands have, spelt the same in each."""
import argparse
import os
from pathlib import Path

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG."""
    parser.add_argument(
        'config', metavar='CONFIG',
        help='config file, or the name of a packaged one')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``; ``load_config`` reads them."""
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[],
        metavar='KEY=VALUE',
        help='override settings of the config; nested keys with dots')


def add_work_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--work-dir``; see :func:`work_dir_of`."""
    parser.add_argument(
        '--work-dir', metavar='DIR',
        help='folder of logs and checkpoints (default: work_dirs/<config>)')


def work_dir_of(args: argparse.Namespace, suffix: str = '') -> str:
    """Give the work folder of a command line, by default the config's name."""
    return args.work_dir or str(
        Path('work_dirs') / f'{Path(args.config).stem}{suffix}')


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and what launchers add by themselves."""
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none',
        help='job launcher (default: none)')
    # torch.distributed.launch passes the latter form
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0,
        help=argparse.SUPPRESS)


def note_local_rank(args: argparse.Namespace) -> None:
    """Say the rank where torch looks for it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
