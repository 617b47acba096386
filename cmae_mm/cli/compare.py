"""Comparing a pre-trained start with random weights, at equal steps."""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

from ..config import ConfigError
from .arguments import (
    RANDOM,
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_work_dir,
    work_dir_of,
)
from .command import Command, Result
from .parser import at_least

STARTS = (RANDOM, 'pretrained')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser, 'config of the transfer; a file')
    add_checkpoint(parser, 'what TransferViT takes: a pre-training '
                   'checkpoint, an exported backbone...')
    parser.add_argument(
        '--seeds', type=at_least(0), nargs='+', default=[0, 1, 2],
        metavar='N', help='one training of each start a seed (default: 0 1 2)')
    add_work_dir(parser, '_compare')
    add_cfg_options(parser)


def train_once(args: argparse.Namespace, start: str,
               seed: int) -> Dict[str, float]:
    """Train once, or read what an earlier call has trained."""
    from ..visualization.loss_curve import read_metrics, read_scalars
    folder = Path(work_dir_of(args, '_compare')) / f'{start}_seed{seed}'
    done = folder / 'result.json'
    if done.is_file():
        return json.loads(done.read_text())
    checkpoint = RANDOM if start == RANDOM else args.checkpoint
    command = [
        sys.executable, '-m', 'cmae_mm', 'train', args.config, '--work-dir',
        str(folder), '--cfg-options',
        f'model.backbone.init_cfg.checkpoint={checkpoint}',
        f'randomness.seed={seed}', *args.cfg_options
    ]
    folder.mkdir(parents=True, exist_ok=True)
    print(f'training from {start} weights with seed {seed}, see {folder}',
          flush=True)
    with open(folder / 'output.txt', 'w') as output:
        code = subprocess.run(command, stdout=output, stderr=output).returncode
    if code:
        last = (folder / 'output.txt').read_text().strip().splitlines()[-1:]
        raise ConfigError(f'{" ".join(command)} failed ({"".join(last)}); '
                          f'its output is in {folder}/output.txt')
    losses = [line['loss'] for line in read_scalars(str(folder))]
    result = dict(
        loss=statistics.mean(losses[-max(1, len(losses) // 10):]),
        **read_metrics(str(folder)))
    done.write_text(json.dumps(result) + '\n')
    return result


def compare(args: argparse.Namespace) -> Result:
    """Train all, print the table, and write it."""
    from ..evaluation.report import print_table
    results: Dict[str, List[Dict[str, float]]] = {
        start: [train_once(args, start, seed) for seed in args.seeds]
        for start in STARTS
    }
    names = [
        name for name in results[RANDOM][0]
        if all(name in run for runs in results.values() for run in runs)
    ]
    summary: Dict[str, Dict[str, List[float]]] = {}
    rows = []
    for name in names:
        summary[name] = {}
        for start, runs in results.items():
            values = [run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.
            summary[name][start] = [statistics.mean(values), spread]
        rows.append([name, *(f'{mean:.4f} +- {spread:.4f}'
                             for mean, spread in summary[name].values())])
    print_table(['', *STARTS], rows)
    path = Path(work_dir_of(args, '_compare')) / 'comparison.json'
    path.write_text(json.dumps(summary, indent=2) + '\n')
    print(f'{len(args.seeds)} seeds, mean and standard deviation; also in '
          f'{path}')
    return dict(config=args.config, checkpoint=args.checkpoint,
                seeds=args.seeds, **summary)


COMMANDS = [
    Command(
        name='compare',
        help='fine-tune from a checkpoint and from random weights',
        description='Trains CONFIG from CHECKPOINT and from random weights, '
        'once for each seed, and prints the mean and the spread of the last '
        'losses and of every metric of the last validation. Interrupted, the '
        'same command goes on where it stopped.',
        example='cmae compare segmentation/upernet-mini_coco epoch_300.pth '
        '--seeds 0 1 2',
        add_arguments=add_arguments,
        stopped=lambda args: 'the trainings that are done are in '
        f'{work_dir_of(args, "_compare")}, and the same command goes on',
        run=compare),
]
