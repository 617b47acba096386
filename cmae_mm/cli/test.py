"""Testing a checkpoint with the evaluators of its config."""
import argparse
from contextlib import contextmanager, nullcontext
from typing import Any, Iterator, Optional

from ..config import ConfigError, load_config, remember
from ..files import atomic_path, check_output, write_file
from .arguments import (
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_launcher,
    add_work_dir,
    note_local_rank,
    set_work_dir,
)
from .command import Command, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    add_checkpoint(parser, "a checkpoint of the config's model")
    add_work_dir(parser)
    parser.add_argument(
        '--out', metavar='FILE', help='write the metrics to this JSON file')
    parser.add_argument(
        '--dump', metavar='FILE',
        help='write the raw predictions to this .pkl file')
    add_cfg_options(parser)
    add_launcher(parser)


def check(args: argparse.Namespace) -> None:
    """Check the names of what is written.

    Raises:
        ConfigError: If they do not end as the files' formats do.
    """
    for option, name, suffix in (('--out', args.out, '.json'),
                                 ('--dump', args.dump, '.pkl')):
        if name is None:
            continue
        if not name.endswith(suffix):
            raise ConfigError(f'{option} must name a {suffix} file, but got '
                              f'{name!r}')
        check_output(name)


def test(args: argparse.Namespace) -> Result:
    """Build the runner and test; give the metrics."""
    import mmengine
    from mmengine.dist import is_main_process

    from ..engine import ResumableRunner
    from ..engine.device import adapt_to_device
    note_local_rank(args)
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    set_work_dir(cfg, args)
    if cfg.get('test_dataloader') is None:
        raise ConfigError(
            f'{args.config} has nothing to test: it has no test_dataloader, '
            'as pre-training configs have none')
    cfg.load_from, cfg.resume = args.checkpoint, False
    remember(cfg, args.cfg_options)
    adapt_to_device(cfg)
    runner = ResumableRunner.from_cfg(cfg)
    with _dumping(runner, args.dump):
        metrics = runner.test()
    if args.out and is_main_process():
        write_file(args.out, mmengine.dump(metrics, file_format='json'))
    return metrics


@contextmanager
def _dumping(runner: Any, path: Optional[str]) -> Iterator[None]:
    """Let a runner write its predictions while it tests."""
    from mmengine.dist import is_main_process
    from mmengine.evaluator import DumpResults
    if path is None:
        yield
        return
    with atomic_path(path) if is_main_process() else nullcontext(
            path) as file:
        runner.test_evaluator.metrics.append(
            DumpResults(out_file_path=str(file)))
        yield


COMMANDS = [
    Command(
        name='test',
        help="test a checkpoint with its config's evaluators",
        example='cmae test finetune/vit-b_pt300e_100e_in1k '
        'work_dirs/finetuned/epoch_100.pth\n'
        'tools/dist_test.sh '
        'configs/finetune/vit-b_pt300e_100e_in1k.py epoch_100.pth 8',
        add_arguments=add_arguments,
        check=check,
        run=test),
]
