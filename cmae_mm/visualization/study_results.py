"""Results of a study: a table, a CSV file and a plot."""
import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import atomic_path, write_file
from ..progress import describe_seconds
from .runs import PLACES, Run, read_run, series

SECONDS = 'seconds of training'
# Time, commit and machine of the last step of a run.
ORIGIN = ('date', 'commit', 'machine')
# Mean, standard deviation and number of seeds of each measure of each row.
Summary = dict[str, dict[str, tuple[float, float, int]]]


class Results(NamedTuple):
    """Results of the finished runs.

    Args:
        summary (dict): Mean, sample standard deviation and number of seeds of
            each measure of each row.
        table (str): The same as Markdown.
    """

    summary: Summary
    table: str


def write_results(study: Any, out: Path) -> Results:
    """Write results.csv, results.md and scores.png.

    Args:
        study (Study): See :func:`~cmae_mm.apis.study.read_study`.
        out (Path): The folder to write to.

    Returns:
        Results: The summary and the table.
    """
    rows = [(run, measure(run)) for run in study.runs]
    columns = list(dict.fromkeys(
        name for _, values in rows for name in values))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator='\n')
    writer.writerow(['run', 'seed', *columns, *ORIGIN])
    for run, values in rows:
        if values:
            made: dict[str, str] = {}
            for step in run.steps:
                made = step.read_done().get('made', made)
            writer.writerow([
                run.name, run.seed, *(values.get(c, '') for c in columns),
                *(made.get(name, '') for name in ORIGIN)])
    write_file(out / 'results.csv', lines.getvalue())
    summary = {name: _summarise([v for run, v in rows if run.name == name],
                                columns) for name in study.names}
    table = _table(summary, columns)
    write_file(out / 'results.md', f'# {study.title}\n\n{table}\n')
    scores = [c for c in columns if c != SECONDS and 'loss' not in c]
    if scores:
        _draw_scores(summary, scores, out / 'scores.png')
    return Results(summary, table)


def measure(run: Any) -> dict[str, float]:
    """Read the results of a run's finished steps.

    Args:
        run (StudyRun): The run.

    Returns:
        dict[str, float]: Values by column.
    """
    found: dict[str, float] = {}
    for step in run.steps:
        done = step.read_done()
        if not done:
            continue
        if step.command[0] != 'train':
            found.update(_evaluation(step.name, done['result']))
            continue
        log = read_run(step.folder)
        if step.name == 'train':
            curves = {name: series(log, name)[1]
                      for name in ('loss', 'loss_rc', 'loss_ct')}
            found.update({name: y[-1] for name, y in curves.items() if y})
            found[SECONDS] = round(log.seconds, 1)
        else:
            found.update(_transfer(step.name, log))
    return found


def _transfer(name: str, log: Run) -> dict[str, float]:
    """Return the mean of the last tenth of losses, and the last validation."""
    losses = series(log, 'loss')[1]
    found = {}
    if losses:
        found[f'{name} loss'] = statistics.mean(
            losses[-max(1, len(losses) // 10):])
    validations = [row for row in log.rows if 'loss' not in row and not any(
        key.startswith(('health/', 'knn/')) for key in row)]
    for key, value in (validations[-1] if validations else {}).items():
        if key not in (*PLACES, 'time', 'data_time') and math.isfinite(value):
            found[f'{name} {key.removeprefix("accuracy/")}'] = value
    return found


def _evaluation(name: str, result: dict[str, Any]) -> dict[str, float]:
    """Return the main metric, or that of each number of labels."""
    if 'metrics' in result:  # of `cmae finetune`
        scores = result['metrics'].get('test') or result['metrics']['val']
        return {name: next(
            value for value in scores.values() if isinstance(value, float))}
    values = {key: value for key, value in result.items()
              if isinstance(value, float) and not key.endswith('_std')}
    if 'top1' in values:
        return {name: values['top1']}
    if name == 'frozen':  # columns of the separate commands
        return values
    return {f'{name} {key}': value for key, value in values.items()}


def _summarise(values: Sequence[dict[str, float]], columns: Sequence[str]
               ) -> dict[str, tuple[float, float, int]]:
    found = {}
    for column in columns:
        numbers = [v[column] for v in values if column in v]
        if numbers:
            deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.
            found[column] = statistics.mean(numbers), deviation, len(numbers)
    return found


def _table(summary: Summary, columns: Sequence[str]) -> str:
    """Write Markdown cells of mean +- standard deviation."""
    lines = ['| | seeds | ' + ' | '.join(columns) + ' |',
             '|---' * (len(columns) + 2) + '|']
    for name, values in summary.items():
        count = max((v[2] for v in values.values()), default=0)
        cells = [_cell(column, values.get(column)) for column in columns]
        lines.append(f'| {name} | {count} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _is_percent(column: str) -> bool:
    return 'loss' not in column and 'coco/' not in column


def _cell(column: str, value: Any) -> str:
    if value is None:
        return '-'
    mean, deviation, count = value
    if column == SECONDS:
        return describe_seconds(mean)
    digits = 1 if _is_percent(column) else 4
    return f'{mean:.{digits}f}' + (
        f' +- {deviation:.{digits}f}' if count > 1 else '')


def _draw_scores(summary: Summary, columns: Sequence[str], path: Path
                 ) -> None:
    """Draw the means and standard deviations of each measure.

    Drawn as points, since bars would need an axis from zero.
    """
    from matplotlib.figure import Figure
    names: list[str] = list(summary)
    figure = Figure(figsize=(3 + 2.6 * len(columns), 1.2 + 0.36 * len(names)),
                    layout='constrained')
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, column in zip(axes, columns):
        for place, name in enumerate(names):
            if column in summary[name]:
                mean, deviation, _ = summary[name][column]
                axis.errorbar(mean, place, xerr=deviation or None, fmt='o',
                              color='#0072b2', capsize=3)
        axis.set(title=column + ', %' * _is_percent(column))
        axis.margins(x=0.1)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
