"""A page about trainings, in one file: no network, no other file.

Curves are drawn by plotly (extra='report'), whose script is part of the page.
"""
import base64
import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from .runs import Run, series

# Seen on white and on black.
COLOURS = ('#3b82f6', '#d97400', '#17a06b', '#d6409f', '#8b5cf6', '#0899ab',
           '#e5484d', '#a8830f', '#7a7f87')
_DASHES = ('', '7 4', '2 3', '7 3 2 3', '11 4', '11 3 2 3')
# Points of a curve beyond which every n-th is taken.
MOST_POINTS = 2000


class Chart(NamedTuple):
    """A chart: its title, a line about it, and what it shows.

    Args:
        title (str): What the chart is of.
        about (str): How to read it.
        names (Sequence[str]): What was logged, as in the log; a name that
            ends in ``*`` stands for all that begin so.
        log (bool): Whether the axis is logarithmic. Defaults to False.
    """

    title: str
    about: str
    names: Sequence[str]
    log: bool = False


CHARTS = (
    Chart('Total loss', 'what is minimised', ('loss', )),
    Chart('Reconstruction loss', 'L_r, over the removed patches',
          ('loss_rc', )),
    Chart('Contrastive loss', 'L_c, weighted', ('loss_ct', )),
    Chart('Contrastive accuracy',
          'images whose own target is the nearest, in percent', ('acc_ct', )),
    Chart('Rank of the positive',
          'mean place of an image\'s own target in its batch; 1 is the best',
          ('health/positive_rank', ), log=True),
    Chart('Cosines', 'of predictions with their own and with other targets',
          ('rho_pos', 'rho_neg')),
    Chart('Effective rank', 'RankMe of features in a batch',
          ('health/erank_*', )),
    Chart('Spread', '0: all features have one direction; 1: all directions',
          ('health/spread_*', )),
    Chart('Distance of target and online parameters',
          'relative to the norm of the latter', ('health/target_distance', )),
    Chart('Gradient norms', 'by part of the model', ('health/grad/*', ),
          log=True),
    Chart('Evaluation while it trains', 'in percent',
          ('knn/*', 'probe_top1', 'accuracy/*', 'coco/*', 'mIoU', 'mAcc')),
    Chart('Learning rate', 'of the first group', ('lr', )),
    Chart('Images per second', 'of all processes',
          ('health/images_per_second', )),
    Chart('Waiting for data', 'share of the time, in percent',
          ('health/data_wait', )),
    Chart('Memory', 'highest use so far, MB',
          ('health/host_memory_mb', 'health/device_memory_mb', 'memory')),
)


def escape(text: Any) -> str:
    """Escape text for HTML."""
    return html.escape(str(text))


def expand(names: Sequence[str], logged: Sequence[str]) -> List[str]:
    """Give the names that were logged, of patterns."""
    found: List[str] = []
    for name in names:
        found += [n for n in logged if n == name or (
            name.endswith('*') and n.startswith(name[:-1]))]
    return found


def collect_charts(runs: Sequence[Run], charts: Sequence[Chart] = CHARTS
                   ) -> List[Dict[str, Any]]:
    """Gather the curves of all charts that there is something for.

    Args:
        runs (Sequence[Run]): The trainings.
        charts (Sequence[Chart]): What is drawn. Defaults to :data:`CHARTS`.

    Returns:
        List[Dict[str, Any]]: For each chart ``title``, ``about``, ``log`` and
        ``series``, each with ``run`` (number), ``index`` of its name,
        ``name``, ``x`` and ``y``.
    """
    logged = sorted({name for run in runs for row in run.rows for name in row})
    made = []
    for chart in charts:
        names = expand(chart.names, logged)
        lines = []
        for number, run in enumerate(runs):
            for index, name in enumerate(names):
                x, y = series(run, name)
                if chart.log:  # no zeros there
                    kept = [(a, b) for a, b in zip(x, y) if b > 0]
                    x, y = [a for a, _ in kept], [b for _, b in kept]
                if x:
                    step = -(-len(x) // MOST_POINTS)
                    lines.append(dict(
                        run=number, index=index, name=short(name, chart),
                        x=x[::step], y=[float(f'{v:.6g}') for v in y[::step]]))
        if lines:
            made.append(dict(title=chart.title, about=chart.about,
                             log=chart.log, names=[short(n, chart)
                                                   for n in names],
                             series=lines))
    return made


def short(name: str, chart: Chart) -> str:
    """Leave out what the names of a chart begin with."""
    for pattern in chart.names:
        if pattern.endswith('*') and name.startswith(pattern[:-1]):
            return name[len(pattern) - 1:]
    return name.removeprefix('health/')


def table(header: Sequence[str], rows: Sequence[Sequence[Any]],
          numbers: Sequence[int] = (), caption: str = '') -> str:
    """Make a table that scrolls where it is wider than the page.

    Args:
        header (Sequence[str]): Titles of the columns.
        rows (Sequence[Sequence[Any]]): Cells, which are escaped.
        numbers (Sequence[int]): Columns that are aligned to the right.
            Defaults to none.
        caption (str): What a reader that does not see it is told. Defaults to
            ''.

    Returns:
        str: HTML.
    """

    def cells(row: Sequence[Any], tag: str) -> str:
        return ''.join(
            f'<{tag}{" class=number" if i in numbers else ""}>{escape(c)}'
            f'</{tag}>' for i, c in enumerate(row))

    body = ''.join(f'<tr>{cells(row, "td")}</tr>' for row in rows)
    label = escape(caption or header[0])
    return (f'<div class="scroll" tabindex="0" role="region" '
            f'aria-label="{label}"><table><thead><tr>'
            f'{cells(header, "th")}</tr></thead><tbody>{body}</tbody></table>'
            '</div>')


def embed_picture(path: Path, alt: str) -> str:
    """Put a picture file into the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<img loading="lazy" alt="{escape(alt)}" '
            f'src="data:image/png;base64,{data}">')


def plotly_script() -> str:
    """Give plotly's script, from its package.

    Raises:
        ImportError: If plotly is not installed.
    """
    from plotly.offline import get_plotlyjs
    return get_plotlyjs()


def render_page(title: str, intro: str, runs: Sequence[Run],
                sections: Sequence[Tuple[str, str, str]]) -> str:
    """Put a page together.

    Args:
        title (str): Title of the page.
        intro (str): HTML below it.
        runs (Sequence[Run]): The trainings, whose curves are drawn.
        sections (Sequence[Tuple[str, str, str]]): Of each its name in links,
            its heading, and HTML. The one named 'curves' gets the charts
            after its HTML.

    Returns:
        str: The whole file.
    """
    charts = collect_charts(runs)
    ends = [row['iter'] for run in runs for row in run.rows]
    data = dict(
        runs=[dict(name=run.name, colour=COLOURS[i % len(COLOURS)])
              for i, run in enumerate(runs)],
        charts=charts, colours=list(COLOURS),
        extent=[min(ends, default=0), max(ends, default=1)])
    # A name in a log must not end the element.
    plain = json.dumps(data, allow_nan=False).replace('<', '\\u003c')
    page = files('cmae_mm.visualization') / 'page'
    links = ''.join(f'<li><a href="#{name}">{escape(heading)}</a></li>'
                    for name, heading, _ in sections)
    body = ''.join(
        f'<section id="{name}" aria-labelledby="h-{name}">'
        f'<h2 id="h-{name}">{escape(heading)}</h2>{content}'
        f'{_charts(runs, charts) if name == "curves" else ""}</section>'
        for name, heading, content in sections)
    script = (page / 'report.js').read_text('utf-8')
    return f'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{(page / 'report.css').read_text('utf-8')}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{escape(title)}</h1>
{intro}
<nav aria-label="Sections"><ul>{links}<li><button id="theme" type="button">
Theme: system</button></li></ul></nav>
</header>
<main id="main">{body}</main>
<footer>Made by <code>cmae report</code>. Curves are drawn by plotly.js, which
is part of this file; nothing is loaded from elsewhere.</footer>
<script type="application/json" id="data">{plain}</script>
<script>{plotly_script()}</script>
<script>{script}</script>
</body>
</html>
'''


def _legend(names: Sequence[str], runs: int) -> str:
    """Say which line is which, where a chart has several of a run."""
    if len(names) < 2:
        return ''
    parts = []
    for i, name in enumerate(names):
        colour = 'currentColor' if runs > 1 else COLOURS[i % len(COLOURS)]
        dash = _DASHES[i % len(_DASHES)] if runs > 1 else ''
        parts.append(
            '<span class="key"><svg width="26" height="8" aria-hidden="true">'
            f'<line x1="0" y1="4" x2="26" y2="4" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/></svg> '
            f'{escape(name)}</span>')
    return '<br>' + ' '.join(parts)


def _charts(runs: Sequence[Run], charts: Sequence[Dict[str, Any]]) -> str:
    """Make the controls and the places of the charts."""
    boxes = ''
    if len(runs) > 1:
        boxes = ''.join(
            f'<label><input type="checkbox" data-run="{i}" checked>'
            f'<span class="swatch" style="background:'
            f'{COLOURS[i % len(COLOURS)]}"></span>{escape(run.name)}</label>'
            for i, run in enumerate(runs))
    buttons = ''.join(
        f'<button type="button" data-key="{key}">{text}</button>'
        for key, text in (('+', 'Zoom in'), ('-', 'Zoom out'),
                          ('ArrowLeft', 'Earlier'), ('ArrowRight', 'Later'),
                          ('0', 'All')))
    figures = ''
    for number, chart in enumerate(charts):
        last = '; '.join(
            f'{runs[s["run"]].name} {s["name"]} {s["y"][-1]:.4g}'
            for s in chart['series'])
        figures += (
            f'<figure><figcaption>{escape(chart["title"])}<small>'
            f'{escape(chart["about"])}{_legend(chart["names"], len(runs))}'
            '</small></figcaption>'
            f'<div class="chart" tabindex="0" role="img" data-chart="{number}"'
            f' aria-label="{escape(chart["title"])}; last values: '
            f'{escape(last)}"></div></figure>')
    return (
        f'<div class="controls">{boxes}{buttons}<span id="shown" '
        'aria-live="polite">all iterations</span><label>Smoothing '
        '<input id="smoothing" type="range" min="0" max="0.98" step="0.02" '
        'value="0"></label></div>'
        f'<noscript><p>Curves need JavaScript.</p></noscript>'
        f'<div class="charts">{figures}</div>')
