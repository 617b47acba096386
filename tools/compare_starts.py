#!/usr/bin/env python
"""Compare a pre-trained start with random weights, at equal steps.

Trains CONFIG from CHECKPOINT and from random weights, once for each seed, and
prints the mean and the spread of the last loss and of every metric of the last
validation. Interrupted, the same command goes on where it stopped.
"""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

from cmae_mm.cli.command import run
from cmae_mm.cli.config import ConfigError, add_debug_option

TOOLS = Path(__file__).resolve().parent


def run_one(args: argparse.Namespace, start: str, seed: int) -> Dict:
    """Train once, or read what an earlier call has trained."""
    folder = Path(args.work_dir) / f'{start}_seed{seed}'
    done = folder / 'result.json'
    if done.is_file():
        return json.loads(done.read_text())
    checkpoint = args.checkpoint if start == 'pretrained' else 'random'
    init = f'model.backbone.init_cfg.checkpoint={checkpoint}'
    command = [
        sys.executable, str(TOOLS / 'train.py'), args.config, '--work-dir',
        str(folder), '--cfg-options', init, f'randomness.seed={seed}',
        *args.cfg_options
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'output.txt', 'w') as output:
        code = subprocess.run(command, stdout=output, stderr=output).returncode
    if code:
        last = (folder / 'output.txt').read_text().strip().splitlines()[-1:]
        raise ConfigError(f'{" ".join(command)} failed ({"".join(last)}); '
                          f'its output is in {folder}/output.txt')
    result = read_result(folder)
    done.write_text(json.dumps(result) + '\n')
    return result


def read_result(folder: Path) -> Dict[str, float]:
    """Read the last losses' mean and the last metrics of a training's log."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    losses: List[float] = []
    result: Dict[str, float] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            scalars = json.loads(line)
            if 'loss' in scalars:
                losses.append(scalars['loss'])
            else:
                result = {
                    k: v for k, v in scalars.items()
                    if k not in ('time', 'data_time', 'step')
                }
    last = losses[-max(1, len(losses) // 10):]
    return dict(loss=statistics.mean(last), **result)


def main() -> None:
    """Train all and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='transfer config')
    parser.add_argument('checkpoint', help='what TransferViT takes')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', required=True)
    parser.add_argument(
        '--cfg-options', nargs='+', default=[],
        help='passed on to tools/train.py')
    add_debug_option(parser)
    args = parser.parse_args()

    results = {
        start: [run_one(args, start, seed) for seed in args.seeds]
        for start in ('random', 'pretrained')
    }
    names = [
        k for k in results['random'][0]
        if all(k in r for runs in results.values() for r in runs)
    ]
    summary: Dict[str, Dict] = {}
    width = max(len(n) for n in names)
    print(f'{"":<{width}}  {"random":>18}  {"pretrained":>18}')
    for name in names:
        cells = []
        summary[name] = {}
        for start, runs in results.items():
            values = [r[name] for r in runs]
            mean = statistics.mean(values)
            spread = statistics.stdev(values) if len(values) > 1 else 0.
            summary[name][start] = [mean, spread]
            cells.append(f'{mean:10.4f} +- {spread:.4f}')
        print(f'{name:<{width}}  ' + '  '.join(f'{c:>18}' for c in cells))
    path = Path(args.work_dir) / 'comparison.json'
    path.write_text(json.dumps(summary, indent=2) + '\n')
    print(f'{len(args.seeds)} seeds, mean and standard deviation; also in '
          f'{path}')


if __name__ == '__main__':
    run(main)
