#!/usr/bin/env python
"""Plot accuracy over labels per class of studies/labels.yaml.

python tools/studies/plot_labels.py studies/labels.csv docs/labels.png
"""
import argparse
import csv
import re
import statistics
from collections import defaultdict
from pathlib import Path

# Run, fine-tuned or frozen -> labels per class -> accuracies of the seeds.
Curves = dict[tuple[str, bool], dict[int, list[float]]]
COLOURS = ('#0072b2', '#777777', '#d55e00')


def read_curves(path: Path) -> Curves:
    """Read the columns "N labels" and "N labels, frozen" of results.csv."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    with path.open(newline='') as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                match = re.fullmatch(r'(\d+) labels(, frozen)?', column)
                if match and value:
                    curves[row['run'], bool(match[2])][int(match[1])].append(
                        float(value))
    return curves


def plot(curves: Curves, out: Path) -> None:
    """Draw one line per run, dashed for frozen encoders."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.subplots()
    runs = list(dict.fromkeys(run for run, _ in curves))
    ticks = sorted({n for values in curves.values() for n in values})
    for (run, frozen), values in curves.items():
        labels = sorted(values)
        scores = [values[n] for n in labels]
        axis.errorbar(
            labels, [statistics.mean(s) for s in scores],
            [statistics.stdev(s) if len(s) > 1 else 0 for s in scores],
            color=COLOURS[runs.index(run)], marker='o', markersize=4,
            linestyle='--' if frozen else '-', capsize=2,
            label=f'{run}, {"frozen" if frozen else "fine-tuned"}')
    axis.set(xscale='log', xlabel='labelled images per class',
             ylabel='test accuracy, %')
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=100)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('results', type=Path, help='results.csv of the study')
    parser.add_argument('out', type=Path, help='image file to write')
    args = parser.parse_args()
    plot(read_curves(args.results), args.out)


if __name__ == '__main__':
    main()
