"""Arguments that several commands have, spelt the same in each."""
import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

from ..config import ConfigError, check_pairs
from ..files import check_output
from ..packaged import find_config

if TYPE_CHECKING:
    from mmengine.config import Config

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
# In the place of CHECKPOINT, where random weights are of use.
RANDOM = 'random'


def at_least(least: int) -> Callable[[str], int]:
    """Make a type of argument: a whole number of some size or more.

    Args:
        least (int): The smallest number that is allowed.

    Returns:
        Callable: For argparse's ``type``.
    """

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least:
            raise argparse.ArgumentTypeError(
                f'must be a whole number of {least} or more, but got {text!r}')
        return number

    return whole_number


def above_zero(text: str) -> float:
    """Read a number above 0; a type of argument."""
    try:
        number = float(text)
    except ValueError:
        number = 0.
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(
            f'must be a number above 0, but got {text!r}')
    return number


def add_data(parser: argparse.ArgumentParser,
             help: str = 'folder of images, with sub-folders or none, list of '
             'paths, store or shards') -> None:
    """Add DATA, a folder or a list."""
    parser.add_argument('data', metavar='DATA', help=help)


def add_config(parser: argparse.ArgumentParser,
               what: str = 'config file') -> None:
    """Add CONFIG."""
    parser.add_argument(
        'config', metavar='CONFIG',
        help=f'{what}, or the name of a packaged one, whose data are in '
        'the folder $DATA_ROOT')


def add_checkpoint(parser: argparse.ArgumentParser, help: str,
                   random: bool = False) -> None:
    """Add CHECKPOINT.

    Args:
        parser (argparse.ArgumentParser): A command's.
        help (str): Which checkpoints are taken.
        random (bool): Whether the word 'random' stands for random weights.
            Defaults to False.
    """
    if random:
        help += f'; or the word {RANDOM!r} for random weights'
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help=help)
    parser.set_defaults(takes_random=random)


def add_out(parser: argparse.ArgumentParser, help: str) -> None:
    """Add OUT."""
    parser.add_argument('out', metavar='OUT', help=help)


def check_inputs(args: argparse.Namespace) -> None:
    """Look for DATA, CONFIG and CHECKPOINT before anything is imported.

    The form of ``--cfg-options`` is looked at too.

    Raises:
        FileNotFoundError: If one is not there.
        ConfigError: If an override is none, or an output is an input.
        OSError: If nothing can be written to the work folder.
    """
    given = vars(args)
    if is_finished(given.get('config')):
        return
    if 'config' in given:
        _check_is_config(args.config)
    check_pairs(given.get('cfg_options') or [])
    if given.get('data') is not None:
        check_data(args.data)
    if given.get('work_dir') is not None:
        check_output(args.work_dir, is_folder=True)
    _check_outputs(given)
    checkpoint = given.get('checkpoint')
    if checkpoint is None or '://' in checkpoint or (
            checkpoint == RANDOM and given.get('takes_random')):
        return
    if not Path(checkpoint).expanduser().exists():
        raise FileNotFoundError(f'there is no checkpoint {checkpoint}')


def is_finished(name: Optional[str]) -> bool:
    """Return whether a path is a folder of `cmae finetune`."""
    return name is not None and (Path(name) / 'best.pth').is_file()


def _check_outputs(given: Dict[str, Any]) -> None:
    """Check that no output is a file that the command reads.

    Raises:
        ConfigError: If one is.
    """
    outputs = {name: given[name] for name in ('out', 'dump')
               if isinstance(given.get(name), str)}
    inputs = [value for name, values in given.items() if name not in outputs
              for value in (values if isinstance(values, list) else [values])
              if isinstance(value, str)]
    for output in outputs.values():
        for name in inputs:
            try:
                same = os.path.samefile(output, os.path.expanduser(name))
            except (OSError, ValueError):  # one of them is no file
                continue
            if same:
                raise ConfigError(
                    f'{output} is read by this command, and would be '
                    'overwritten; name another output')


def _check_is_config(name: str) -> None:
    kinds = ('.pth', '.pt', '.safetensors', '.ckpt')
    if name == RANDOM or Path(name).suffix in kinds:
        raise ValueError(f'{name} is no config; CONFIG comes before '
                         'CHECKPOINT')
    find_config(name)


def check_data(name: str) -> None:
    """Check that there is a folder or a file, which may be a list.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and not path.is_file():
        raise FileNotFoundError(
            f'there is no folder {name}, and no list, store or shards of this '
            'name')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``; ``load_config`` reads them."""
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[],
        metavar='KEY=VALUE',
        help='override settings of the config; nested keys with dots')


def add_work_dir(parser: argparse.ArgumentParser, suffix: str = '') -> None:
    """Add ``--work-dir``; see :func:`work_dir_of`."""
    parser.add_argument(
        '--work-dir', metavar='DIR',
        help='folder of logs and whatever is saved (default: '
        f'work_dirs/<config>{suffix})')


def work_dir_of(args: argparse.Namespace, suffix: str = '') -> str:
    """Give the work folder of a command line, by default the config's name."""
    return args.work_dir or str(
        Path('work_dirs') / f'{Path(args.config).stem}{suffix}')


def set_work_dir(cfg: 'Config', args: argparse.Namespace) -> None:
    """Set a runner's work folder: the command line's, then the config's."""
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = work_dir_of(args)


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and what launchers add by themselves."""
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none',
        help='job launcher (default: none)')
    # torch.distributed.launch passes the latter form
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0,
        help=argparse.SUPPRESS)


def add_log_to(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-to``."""
    parser.add_argument(
        '--log-to', type=_names, default=(), metavar='NAME,NAME',
        help='log figures and pictures to tensorboard, wandb or mlflow too; '
        'the file in the work folder is always written')


def _names(text: str) -> Tuple[str, ...]:
    return tuple(name for name in text.split(',') if name)


def note_local_rank(args: argparse.Namespace) -> None:
    """Say the rank where torch looks for it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """Add ``--encoder``."""
    parser.add_argument(
        '--encoder', choices=['online', 'target'], default='online',
        help='the trained encoder (default), or the one that follows it')


def add_pool(parser: argparse.ArgumentParser) -> None:
    """Add ``--pool``, an image's feature."""
    parser.add_argument(
        '--pool', choices=['mean', 'cls'], default='mean',
        help='mean of the patch tokens (default), or the class token')


def add_loader(parser: argparse.ArgumentParser, batch_size: int = 256,
               num_workers: int = 2) -> None:
    """Add ``--batch-size`` and ``--num-workers``, both of each process."""
    parser.add_argument(
        '--batch-size', type=at_least(1), default=batch_size, metavar='N',
        help=f'images at once on each process (default: {batch_size})')
    parser.add_argument(
        '--num-workers', type=at_least(0), default=num_workers, metavar='N',
        help='processes that read images, for each process (default: '
        f'{num_workers})')
