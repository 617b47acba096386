"""The results of a study: a table, a CSV file, points and curves."""
import csv
import json
import statistics
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from ..progress import describe_seconds
from .runs import read_run, series

# The curve that is drawn: of KNNHook, in the configs that have it.
CURVE = 'knn/top1_k20'
SECONDS = 'seconds of training'
COLOURS = ('black', '#d55e00', '#0072b2', '#009e73', '#cc79a7', '#56b4e9',
           '#e69f00', '#999999')


class Results(NamedTuple):
    """What is known so far.

    Args:
        summary (dict): Of each row and measure the mean, the sample's standard
            deviation, and the number of seeds.
        table (str): The same as Markdown.
    """

    summary: Dict[str, Dict[str, Tuple[float, float, int]]]
    table: str


def write_results(study: Any, out: Path) -> Results:
    """Write results.csv, results.md, scores.png and curves.png.

    Args:
        study (Study): See :func:`~cmae_mm.api.study_plan.read_study`.
        out (Path): Where to write to.

    Returns:
        Results: What they show.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [(run, measured(run)) for run in study.runs]
    columns = list(dict.fromkeys(
        name for _, values in rows for name in values))
    with open(out / 'results.csv', 'w', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['run', 'seed', *columns])
        writer.writerows([run.name, run.seed, *(values.get(c, '')
                                                for c in columns)]
                         for run, values in rows if values)
    summary = {name: _summarise([v for run, v in rows if run.name == name],
                                columns) for name in study.names}
    table = _table(summary, columns)
    (out / 'results.md').write_text(f'# {study.title}\n\n{table}\n', 'utf-8')
    scores = [c for c in columns if c != SECONDS and 'loss' not in c]
    if scores:
        _draw_scores(summary, scores, out / 'scores.png')
    _draw_curves(study, out / 'curves.png')
    return Results(summary, table)


def measured(run: Any) -> Dict[str, float]:
    """Read what the steps of a run that are done have found.

    Args:
        run (StudyRun): The run.

    Returns:
        Dict[str, float]: Values by the column's name.
    """
    found: Dict[str, float] = {}
    for step in run.steps:
        if not step.done.is_file():
            continue
        result = json.loads(step.done.read_text('utf-8'))['result']
        if step.command[0] != 'train':
            found.update(_of_evaluation(step.name, result))
            continue
        log = read_run(step.folder)
        if step.name == 'train':
            found.update({name: series(log, name)[1][-1] for name in (
                'loss', 'loss_rc', 'loss_ct') if series(log, name)[1]})
            found[SECONDS] = round(log.seconds, 1)
            continue
        validations = [row for row in log.rows if 'loss' not in row]
        for name, value in (validations[-1] if validations else {}).items():
            if name.startswith(('accuracy/', 'coco/', 'm')):
                found[f'{step.name} {name.removeprefix("accuracy/")}'] = value
    return found


def _of_evaluation(name: str, result: Dict[str, Any]) -> Dict[str, float]:
    """Take the best accuracy, or that of each number of labels."""
    if 'top1' in result:
        return {name: result['top1']}
    return {f'{name} {key}': value for key, value in result.items()
            if isinstance(value, float) and not key.endswith('_std')}


def _summarise(values: Sequence[Dict[str, float]], columns: Sequence[str]
               ) -> Dict[str, Tuple[float, float, int]]:
    found = {}
    for column in columns:
        numbers = [v[column] for v in values if column in v]
        if numbers:
            found[column] = (
                statistics.mean(numbers),
                statistics.stdev(numbers) if len(numbers) > 1 else 0.,
                len(numbers))
    return found


def _table(summary: Dict[str, Dict[str, Tuple[float, float, int]]],
           columns: Sequence[str]) -> str:
    """Write Markdown: mean +- standard deviation."""
    lines = ['| | seeds | ' + ' | '.join(columns) + ' |',
             '|---' * (len(columns) + 2) + '|']
    for name, values in summary.items():
        count = max((v[2] for v in values.values()), default=0)
        cells = [_cell(column, values.get(column)) for column in columns]
        lines.append(f'| {name} | {count} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return '-'
    mean, spread, count = value
    if column == SECONDS:
        return describe_seconds(mean)
    digits = 4 if 'loss' in column else 1
    return f'{mean:.{digits}f}' + (
        f' +- {spread:.{digits}f}' if count > 1 else '')


def _draw_scores(summary: Dict[str, Dict[str, Tuple[float, float, int]]],
                 columns: Sequence[str], path: Path) -> None:
    """Draw each measure's means, with the standard deviation.

    As points: their axes need no zero, from which bars would hide what
    differs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    names = list(summary)
    figure = Figure(figsize=(3 + 2.6 * len(columns), 1.2 + 0.36 * len(names)),
                    layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, column in zip(axes, columns):
        for place, name in enumerate(names):
            if column in summary[name]:
                mean, spread, _ = summary[name][column]
                axis.errorbar(mean, place, xerr=spread or None, fmt='o',
                              color=COLOURS[place % len(COLOURS)], capsize=3)
        axis.set(title=f'{column}, %')
        axis.margins(x=0.1)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=90)


def _draw_curves(study: Any, path: Path) -> None:
    """Draw k-NN while training goes on, over iterations and over minutes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    drawn: List[str] = []
    for run in study.runs:
        trained = next((s for s in run.steps if s.name == 'train'), None)
        if trained is None or not list(
                trained.folder.glob('*/vis_data/scalars.json')):
            continue
        log = read_run(trained.folder)
        x, y = series(log, CURVE)
        if not x:
            continue
        colour = COLOURS[study.names.index(run.name) % len(COLOURS)]
        label = None if run.name in drawn else run.name
        drawn.append(run.name)
        per_iteration = log.seconds / 60 / max(log.rows[-1]['iter'], 1)
        axes[0].plot(x, y, color=colour, label=label, lw=1.3)
        axes[1].plot([v * per_iteration for v in x], y, color=colour, lw=1.3)
    if not drawn:
        return
    axes[0].set(xlabel='iteration', ylabel='k-NN top-1, % (k = 20)')
    axes[1].set(xlabel='minutes of training')
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize='small')
    figure.savefig(path, dpi=90)
