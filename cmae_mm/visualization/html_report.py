"""HTML report of one or several training runs.

The page is rendered from ``report.html``, a jinja2 template, to a single file
that needs no network connection. plotly draws the curves (extra='report').
"""
import base64
import difflib
import html
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.health import find_warnings
from ..progress import describe_seconds
from ..version import __version__
from .image_grid import label_files
from .runs import Run, read_run, series

# Readable on white and black.
COLOURS = ('#3b82f6', '#d97400', '#17a06b', '#d6409f', '#8b5cf6', '#0899ab',
           '#e5484d', '#a8830f', '#7a7f87')
DASHES = ('solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot')
# Largest number of points of a curve; longer curves are thinned out.
MAX_POINTS = 2000
# Number of newest pictures of each run.
MAX_PICTURES = 4
# Height of a chart and of its title in pixels.
CHART_HEIGHT, TITLE_HEIGHT = 190, 85


class Chart(NamedTuple):
    """A chart.

    Args:
        title (str): Title of the chart.
        about (str): Description of the values.
        names (Sequence[str]): Logged names, with ``*`` as a wildcard.
        log (bool): Whether the axis is logarithmic. Defaults to False.
    """

    title: str
    about: str
    names: Sequence[str]
    log: bool = False


CHARTS = (
    Chart('Total loss', 'the minimised value', ('loss', )),
    Chart('Reconstruction loss', 'L_r, over the masked patches',
          ('loss_rc', )),
    Chart('Contrastive loss', 'L_c, weighted', ('loss_ct', )),
    Chart('Contrastive accuracy', 'own target is the nearest, %',
          ('acc_ct', )),
    Chart('Rank of the positive', 'mean, 1 is the best',
          ('health/positive_rank', ), log=True),
    Chart('Cosines', 'to the own and to other targets',
          ('rho_pos', 'rho_neg')),
    Chart('Effective rank', 'RankMe of features in a batch',
          ('health/erank_*', )),
    Chart('Spread', '0: one direction, 1: all directions',
          ('health/spread_*', )),
    Chart('Target distance', 'relative to the online parameters',
          ('health/target_distance', )),
    Chart('Gradient norms', 'by part of the model', ('health/grad/*', ),
          log=True),
    Chart('Evaluation during training', '%',
          ('knn/*', 'probe_top1', 'accuracy/*', 'coco/*', 'mIoU', 'mAcc',
           'multi-label/mAP')),
    Chart('Learning rate', 'of the first group', ('lr', )),
    Chart('Images per second', 'of all processes',
          ('health/images_per_second', )),
    Chart('Waiting for data', 'share of the time, %', ('health/data_wait', )),
    Chart('Memory', 'highest use so far, MB',
          ('health/host_memory_mb', 'health/device_memory_mb', 'memory')),
)


class Curve(NamedTuple):
    """A curve of a chart: its run, its name, and the points."""

    run: int
    name: str
    x: list[float]
    y: list[float]


class Table(NamedTuple):
    """A table: text columns, then columns of numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text_columns: int


def build_report(folders: Sequence[Path]) -> tuple[str, dict[str, list[str]]]:
    """Build the report of some runs.

    Runs that cannot be read are skipped and listed in the warnings.

    Args:
        folders (Sequence[Path]): Work folders.

    Returns:
        tuple[str, dict[str, list[str]]]: The page, and sentences by run:
        health warnings and damaged files.

    Raises:
        OSError: If no run can be read.
    """
    runs: list[Run] = []
    warnings: dict[str, list[str]] = {}
    failure = None
    names = label_files([folder.resolve() for folder in folders])
    for folder, name in zip(folders, names):
        try:
            run = read_run(folder, name)
            pictures = [_embed(path) for path in run.pictures[-MAX_PICTURES:]]
        except OSError as error:
            failure = error
            warnings[name] = [f'skipped: {error}']
            continue
        runs.append(run._replace(pictures=pictures[::-1]))
        warnings[name] = [*run.damage,
                          *(w.text for w in find_warnings(run.rows))]
    if failure is not None and not runs:
        raise failure
    return _render(runs, warnings), warnings


def _render(runs: Sequence[Run], warnings: Mapping[str, Sequence[str]]) -> str:
    import jinja2
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('cmae_mm', 'visualization'),
        autoescape=True, undefined=jinja2.StrictUndefined)
    charts = collect_charts(runs)
    names = sorted({name for run in runs for name in run.environment})
    return environment.get_template('report.html').render(
        version=__version__, runs=runs, warnings=warnings,
        summary=_summarise(runs), curves=draw_curves(runs, charts),
        values=_last_values(runs, charts),
        evaluations=[(run.name, *row) for run in runs
                     for row in run.evaluations],
        differences=[_diff(runs[0], run) for run in runs[1:]],
        environment=Table(
            ['', *(run.name for run in runs)],
            [[name, *(run.environment.get(name, '-') for run in runs)]
             for name in names], 1 + len(runs)))


def _diff(run: Run, other: Run) -> str:
    """Compare the configs of two runs line by line."""
    return '\n'.join(difflib.unified_diff(
        run.config.splitlines(), other.config.splitlines(), run.name,
        other.name, n=0, lineterm=''))


def _embed(path: Path) -> Any:
    """Read a picture: its title and its content in base64."""
    return (path.stem.replace('_', ' '),
            base64.b64encode(path.read_bytes()).decode())


def _last(run: Run, name: str, form: str) -> str:
    """Format the last value of a curve."""
    values = series(run, name)[1]
    return form.format(values[-1]) if values else '-'


# Columns of the summary: a title, a logged name, and a format.
SUMMARY = (
    ('loss_rc', 'loss_rc', '{:.4g}'), ('loss_ct', 'loss_ct', '{:.4g}'),
    ('rank of the positive', 'health/positive_rank', '{:.1f}'),
    ('effective rank', 'erank', '{:.1f}'),
    ('images', 'health/images_seen', '{:,.0f}'),
    ('images/s', 'health/images_per_second', '{:.0f}'),
    ('waiting for data', 'health/data_wait', '{:.0f} %'),
    ('device memory, MB', 'health/device_memory_mb', '{:,.0f}'),
    ('host memory, MB', 'health/host_memory_mb', '{:,.0f}'))


def _summarise(runs: Sequence[Run]) -> Table:
    """List time, best k-NN and the last values of each run."""
    rows = []
    for run in runs:
        done = max((row['iter'] for row in run.rows), default=0)
        knn = [value for row in run.rows for name, value in row.items()
               if name.startswith('knn/')]
        rows.append([
            run.name, f'{done:,}', describe_seconds(run.seconds),
            f'{max(knn):.1f} %' if knn else '-',
            *(_last(run, name, form) for _, name, form in SUMMARY)])
    return Table(['run', 'iterations', 'time', 'best k-NN',
                  *(title for title, *_ in SUMMARY)], rows, 1)


def collect_charts(runs: Sequence[Run], charts: Sequence[Chart] = CHARTS
                   ) -> dict[Chart, list[Curve]]:
    """Collect the curves of all charts; drop empty charts.

    Args:
        runs (Sequence[Run]): The runs.
        charts (Sequence[Chart]): The charts. Defaults to :data:`CHARTS`.

    Returns:
        dict[Chart, list[Curve]]: The curves of each chart.
    """
    logged = sorted({name for run in runs for row in run.rows for name in row})
    found = {}
    for chart in charts:
        names = [name for name in logged if any(
            fnmatchcase(name, pattern) for pattern in chart.names)]
        curves = [_curve(number, run, name, chart.log) for name in names
                  for number, run in enumerate(runs)]
        curves = [curve for curve in curves if curve.x]
        if curves:
            found[chart] = curves
    return found


def _curve(number: int, run: Run, name: str, log: bool) -> Curve:
    points = [(x, y) for x, y in zip(*series(run, name)) if y > 0 or not log]
    points = points[::1 + len(points) // MAX_POINTS]
    return Curve(number, name.rpartition('/')[2],
                 [x for x, _ in points], [y for _, y in points])


def draw_curves(runs: Sequence[Run], charts: Mapping[Chart, Sequence[Curve]]
                ) -> str:
    """Draw all charts below each other, with a common zoom.

    Args:
        runs (Sequence[Run]): The runs; several have a colour each.
        charts (Mapping[Chart, Sequence[Curve]]): See :func:`collect_charts`.

    Returns:
        str: HTML with plotly's script, '' without charts.

    Raises:
        ImportError: If plotly is not installed.
    """
    from plotly import graph_objects
    from plotly.subplots import make_subplots
    if not charts:
        return ''
    several = len(runs) > 1
    height = (CHART_HEIGHT + TITLE_HEIGHT) * len(charts)
    figure = make_subplots(
        rows=len(charts), cols=1, shared_xaxes='all',
        vertical_spacing=TITLE_HEIGHT / height,
        subplot_titles=[_title(chart, curves, several)
                        for chart, curves in charts.items()])
    shown = set()
    for row, (chart, curves) in enumerate(charts.items(), 1):
        names = list(dict.fromkeys(curve.name for curve in curves))
        for curve in curves:
            index = names.index(curve.name)
            label = html.escape(runs[curve.run].name)
            figure.add_trace(graph_objects.Scatter(
                x=curve.x, y=curve.y,
                mode='lines+markers' if len(curve.x) < 12 else 'lines',
                name='<br>'.join(textwrap.wrap(label, 40)),
                legendgroup=str(curve.run),
                showlegend=several and curve.run not in shown,
                line=dict(
                    color=_cycle(COLOURS, curve.run if several else index),
                    dash=_cycle(DASHES, index if several else 0), width=2),
                hovertemplate=f'{html.escape(curve.name)} %{{y:.4g}}'),
                row=row, col=1)
            shown.add(curve.run)
        if chart.log:
            figure.update_yaxes(type='log', row=row, col=1)
    grid = dict(gridcolor='rgba(128,128,128,.3)', zeroline=False)
    figure.update_xaxes(showticklabels=True, **grid)
    figure.update_yaxes(automargin=True, **grid)
    figure.update_annotations(x=0, xanchor='left', align='left', font_size=13)
    figure.update_layout(
        height=height, margin=dict(l=40, r=10, t=TITLE_HEIGHT, b=30),
        paper_bgcolor='rgba(0,0,0,0)', plot_bgcolor='rgba(0,0,0,0)',
        hovermode='x', font_family='system-ui, DejaVu Sans, sans-serif',
        legend=dict(orientation='h', yanchor='bottom', x=0,
                    y=1 + (TITLE_HEIGHT - 30) / height))
    return figure.to_html(full_html=False, include_plotlyjs=True,
                          config=dict(responsive=True, displayModeBar=False))


def _cycle(values: Sequence[str], index: int) -> str:
    return values[index % len(values)]


def _title(chart: Chart, curves: Sequence[Curve], several: bool) -> str:
    """Write a chart's title, with a legend of its names."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    keys = []
    for i, name in enumerate(names if len(names) > 1 else ()):
        name = html.escape(name)
        keys.append(f'{name} ({_cycle(DASHES, i)})' if several else
                    f'<span style="color:{_cycle(COLOURS, i)}">{name}</span>')
    lines = [', '.join(keys[i:i + 3]) for i in range(0, len(keys), 3)]
    return '<br>'.join([f'<b>{chart.title}</b>', chart.about, *lines])


def _last_values(runs: Sequence[Run],
                 charts: Mapping[Chart, Sequence[Curve]]) -> Table:
    rows = [[chart.title, curve.name, runs[curve.run].name,
             f'{curve.y[0]:.4g}', f'{curve.y[-1]:.4g}']
            for chart, curves in charts.items() for curve in curves]
    return Table(['chart', 'name', 'run', 'first', 'last'], rows, 3)
