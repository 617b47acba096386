#!/usr/bin/env python
"""Train a healthy run, and the same one broken in several ways.

Each run is the training of reference_config.py with a few settings changed;
After an interruption the same command continues without the finished runs.

    python tools/health/reference_runs.py
    python tools/health/reference_runs.py --only healthy duplicates
    python tools/health/plot_reference.py work_dirs/health health.png
"""
import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools/quickstart')]
CONFIG = Path(__file__).with_name('reference_config.py')
TILES = dict(train=1000, val=300, size=40)
# Of the duplicates: distinct images of a photograph, and copies of each.
DISTINCT, COPIES = 5, 20


class Reference(NamedTuple):
    """One run: its name and its changes of the config."""

    name: str
    options: tuple[str, ...] = ()
    data: str = 'tiles'

    @property
    def folder(self) -> str:
        """Give the name of its work folder."""
        return self.name.replace(',', '').replace(' ', '_')


def _steps(count: int, warmup: int) -> tuple[str, ...]:
    return (f'train_cfg.max_iters={count}', f'param_scheduler.0.end={warmup}',
            f'param_scheduler.1.begin={warmup}',
            f'param_scheduler.1.end={count}',
            f'param_scheduler.1.T_max={count - warmup}')


RUNS = [
    Reference('healthy'),
    # How far healthy runs differ.
    Reference('healthy, seed 1', ('randomness.seed=1', )),
    Reference('healthy, seed 2', ('randomness.seed=2', )),
    Reference('rate too high', ('optim_wrapper.optimizer.lr=0.1', )),
    Reference('no shift, no colour', (
        'data_preprocessor.max_shift=0', 'data_preprocessor.jitter_prob=0',
        'data_preprocessor.grey_prob=0', 'data_preprocessor.blur_prob=0')),
    # 1,000 steps of 32 images, eight times 4.
    Reference('tiny batches', (
        'train_dataloader.batch_size=4', 'optim_wrapper.accumulative_counts=8',
        'default_hooks.logger.interval=80', 'log_processor.window_size=80',
        'default_hooks.checkpoint.interval=4000',
        'custom_hooks.5.interval=800',
        *_steps(8000, 800))),
    Reference('momentum too low', ('model.target.momentum=0.05', )),
    Reference('reconstruction alone', ('model.head.contrastive=None', )),
    Reference('duplicates', data='duplicates'),
]


def make_data(folder: Path) -> None:
    """Cut the tiles, and copy some of them over and over."""
    from make_tiles import make_tiles
    make_tiles(folder / 'tiles', **TILES)
    done = folder / 'duplicates/done'
    if done.exists():
        return
    for photograph in sorted((folder / 'tiles/train').iterdir()):
        copies = folder / 'duplicates/train' / photograph.name
        copies.mkdir(parents=True, exist_ok=True)
        for tile in sorted(photograph.glob('*.jpg'))[:DISTINCT]:
            for number in range(COPIES):
                shutil.copy(tile, copies / f'{tile.stem}_{number}.jpg')
    done.touch()


def train(run: Reference, data: Path, out: Path) -> None:
    """Train or resume a run."""
    from cmae_mm.config import load_config
    from cmae_mm.engine import NonFiniteError, ResumableRunner
    from cmae_mm.engine.device import adapt_to_device
    folder = out / run.folder
    done = folder / 'done'
    if done.exists():
        print(f'{run.name}: done before', flush=True)
        return
    print(f'{run.name}: training in {folder}', flush=True)
    os.environ['DATA_ROOT'] = str(data / run.data)
    cfg = load_config(str(CONFIG), run.options)
    for split in ('train', 'val'):
        cfg.evaluation[split].data_root = str(data / 'tiles')
    cfg.work_dir, cfg.launcher = str(folder), 'none'
    # mmengine tells the logs of trainings in one process apart by it.
    cfg.experiment_name = run.folder
    adapt_to_device(cfg)
    try:
        ResumableRunner.from_cfg(cfg).train()
    except NonFiniteError as error:  # which is what some are to show
        print(f'{run.name}: {error}')
    done.touch()


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    names = [run.name for run in RUNS]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--only', nargs='+', choices=names, default=names, metavar='NAME',
        help=f'some of the runs: {", ".join(names)}')
    parser.add_argument(
        '--data', type=Path, default=Path('data/health'),
        help='folder of the images that are made (default: data/health)')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/health'),
        help='folder of the runs (default: work_dirs/health)')
    return parser.parse_args()


def main() -> None:
    """Train."""
    from cmae_mm.apis.arguments import load_libraries
    args = parse_args()
    data, out = args.data.resolve(), args.out.resolve()
    make_data(data)
    load_libraries()
    for run in RUNS:
        if run.name in args.only:
            train(run, data, out)


if __name__ == '__main__':
    main()
