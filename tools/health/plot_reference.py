#!/usr/bin/env python
"""Plot the runs of reference_runs.py side by side, and print their table.

python tools/health/plot_reference.py work_dirs/health health.png
"""
import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Panels: title, what is drawn, and whether the axis is logarithmic.
PANELS: tuple[tuple[str, str, bool], ...] = (
    ('loss_rc', 'loss_rc', False),
    ('loss_ct', 'loss_ct', False),
    ('acc_ct, %', 'acc_ct', False),
    ('rank of the positive (chance = 1)', 'rank', True),
    ('rho_pos (solid), rho_neg (dashed)', 'rho_pos', False),
    ('effective rank, target features', 'health/erank_target', False),
    ('effective rank, online features', 'health/erank_online', False),
    ('spread of predictions', 'health/spread_prediction', False),
    ('distance of target and online', 'health/target_distance', True),
    ('gradient norm, encoder', 'health/grad/backbone', True),
)
COLOURS = ('black', '#777777', '#bbbbbb', '#d55e00', '#0072b2', '#009e73',
           '#cc79a7', '#56b4e9', '#e69f00')
# Last measurements that the table averages.
LAST = 5


def load(name: str, path: Path) -> Any:
    """Import a module that needs neither torch nor the libraries, by file."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def curve(runs: Any, run: Any, name: str) -> list[list[float]]:
    """Give a curve; ``rank`` is relative to what chance gives."""
    if name != 'rank':
        return runs.series(run, name)
    x, y = runs.series(run, 'health/positive_rank')
    targets = runs.series(run, 'health/targets')[1]
    return [x, [2 * rank / (count + 1) for rank, count in zip(y, targets)]]


def smooth(values: list[float], window: int = 3) -> list[float]:
    """Average over neighbours, since single batches scatter."""
    return [sum(part) / len(part) for part in (
        values[max(0, i - window + 1):i + 1] for i in range(len(values)))]


def plot(runs: Any, read: list[Any], out: Path) -> None:
    """Draw all panels, over the share of the training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 14), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-(len(PANELS) + 1) // 2), 2).flatten()
    for axis, (title, name, log) in zip(axes, PANELS):
        for run, colour in zip(read, COLOURS):
            names = [name, 'rho_neg'] if name == 'rho_pos' else [name]
            for one, style in zip(names, ('-', '--')):
                x, y = curve(runs, run, one)
                if x:
                    axis.plot([100 * v / run.rows[-1]['iter'] for v in x],
                              smooth(y), style, color=colour, lw=1.4)
        axis.set(title=title, xlabel='share of the training, %',
                 yscale='log' if log else 'linear')
        axis.grid(alpha=0.3)
    bars = axes[len(PANELS)]
    for i, (run, colour) in enumerate(zip(read, COLOURS)):
        y = runs.series(run, 'knn/top1_k20')[1]
        bars.barh(i, y[-1] if y else 0, color=colour)
    bars.set(title='k-NN top-1 at the end, %', yticks=range(len(read)))
    bars.set_yticklabels([run.name.replace('_', ' ') for run in read])
    bars.invert_yaxis()
    for axis in axes[len(PANELS) + 1:]:
        axis.axis('off')
    figure.savefig(out, dpi=80)
    from PIL import Image
    Image.open(out).convert('RGB').quantize(64).save(out, optimize=True)


def last(runs: Any, run: Any, name: str) -> float | None:
    """Average the last values of a curve."""
    values = curve(runs, run, name)[1][-LAST:]
    return sum(values) / len(values) if values else None


def print_table(runs: Any, read: list[Any]) -> None:
    """Print the ends of all curves, as Markdown."""
    names = [name for _, name, _ in PANELS]
    names.insert(5, 'rho_neg')
    heads = [n.removeprefix('health/') for n in names]
    print('| run | ' + ' | '.join(heads) + ' | k-NN |')
    print('|---' * (len(heads) + 2) + '|')
    for run in read:
        cells = [last(runs, run, name) for name in names]
        knn = runs.series(run, 'knn/top1_k20')[1]
        shown = ['-' if c is None else f'{c:.3g}' for c in cells]
        print(f'| {run.name.replace("_", " ")} | ' + ' | '.join(shown)
              + f' | {knn[-1]:.1f} |' if knn else ' | - |')


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', type=Path, help='folder of the runs')
    parser.add_argument('out', type=Path, help='picture to write')
    args = parser.parse_args()
    runs = load('runs', ROOT / 'cmae_mm/visualization/runs.py')
    sys.path.insert(0, str(Path(__file__).parent))
    from reference_runs import RUNS
    read = [runs.read_run(args.runs / run.folder) for run in RUNS
            if (args.runs / run.folder).is_dir()]
    print_table(runs, read)
    plot(runs, read, args.out)


if __name__ == '__main__':
    main()
