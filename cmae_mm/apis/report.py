"""A page about one training or several, in one file."""
import re
from pathlib import Path
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..config import ConfigError, load_config, walk
from ..evaluation.health_rules import find_warnings
from ..files import write_file
from ..packaged import find_packaged_config
from ..plain_config import PlainConfigError, parse_config
from ..version import __version__
from ..visualization.report_page import (
    embed_picture,
    escape,
    render_page,
    table,
)
from ..visualization.runs import Run, name_runs, read_run, series
from .checks import PathLike
from .report_checks import check_report

# Pictures of each run, the latest.
MOST_PICTURES = 4
# Of a config, what says nothing about the training.
_LEFT_OUT = ('work_dir', 'launcher', 'resume', 'load_from', 'env_cfg.',
             'experiment_name', 'custom_imports', 'runner_type', 'visualizer',
             'log_level', 'vis_backends')
_SEARCHED = 'config.py'


class Report(NamedTuple):
    """A report that was written.

    Args:
        out (Path): The HTML file.
        runs (List[str]): Names of the runs in it.
        warnings (Dict[str, List[str]]): Sentences by run.
    """

    out: Path
    runs: List[str]
    warnings: Dict[str, List[str]]


def report(folders: Sequence[PathLike],
           out: PathLike = 'report.html',
           base: Optional[str] = None) -> Report:
    """Write a page about one training or several, laid over each other.

    It is one file that needs no network: curves that can be zoomed into,
    pictures, evaluation results, warnings in words, what was trained on what,
    and what it cost.

    Args:
        folders (Sequence[str | PathLike]): Work folders.
        out (str | PathLike): File to write. Defaults to 'report.html'.
        base (str, optional): The config that those of the runs are compared
            with. Defaults to the packaged one that a run is made from, where
            that can be told.

    Returns:
        Report: The file, and the warnings.

    Raises:
        ArgumentError: If a folder or a name is none.
        FileNotFoundError: If a folder holds no log.
        ImportError: If plotly is missing.
    """
    check_report(folders, out)
    paths = [Path(folder).expanduser() for folder in folders]
    runs = [read_run(path, name)
            for path, name in zip(paths, name_runs(paths))]
    warnings = {run.name: [w.text for w in find_warnings(run.rows)]
                for run in runs}
    title = 'Training report: ' + ', '.join(run.name for run in runs)
    intro = ('<p class="soft">cmae_mm ' + escape(__version__) + ', '
             f'{len(runs)} run{"s" if len(runs) > 1 else ""}</p>')
    sections = [
        ('summary', 'Summary', _summary(runs) + _warnings(warnings)),
        ('curves', 'Curves', _about_curves()),
        ('pictures', 'Pictures', _pictures(runs)),
        ('evaluation', 'Evaluation', _evaluations(runs)),
        ('cost', 'Cost', _costs(runs)),
        ('config', 'Configuration', _configs(runs, base)),
        ('environment', 'Environment', _environments(runs)),
    ]
    page = render_page(title, intro, runs, [s for s in sections if s[2]])
    file = Path(out).expanduser()
    write_file(file, page)
    return Report(file, [run.name for run in runs], warnings)


def _last(run: Run, name: str, form: str = '.4g') -> str:
    values = series(run, name)[1]
    return format(values[-1], form) if values else '-'


def _summary(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        done = max((int(row['iter']) for row in run.rows), default=0)
        state = f'{done:,}'
        if run.total:
            state += f' of {run.total:,}'
        best = [max(series(run, name)[1], default=None) for name in sorted({
            n for row in run.rows for n in row if n.startswith('knn/')})]
        rows.append([
            run.name, state, time_of(run.seconds), _last(run, 'loss_rc'),
            _last(run, 'loss_ct'), _last(run, 'health/positive_rank', '.1f'),
            _last(run, 'erank', '.1f'),
            f'{max(b for b in best if b is not None):.1f} %' if any(
                b is not None for b in best) else '-'])
    return table(
        ['run', 'iterations', 'time', 'loss_rc', 'loss_ct',
         'rank of the positive', 'effective rank', 'best k-NN'], rows,
        range(1, 8), 'Summary')


def time_of(seconds: float) -> str:
    """Write a time for people: '3 h 20 min'."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def _warnings(warnings: Mapping[str, Sequence[str]]) -> str:
    made = ''
    for name, sentences in warnings.items():
        if sentences:
            text = ''.join(f'<p>{escape(s)}</p>' for s in sentences)
            made += (f'<div class="warning" role="note"><p><strong>'
                     f'{escape(name)}</strong></p>{text}</div>')
        else:
            made += (f'<p class="healthy">{escape(name)}: no warning of the '
                     'health monitor.</p>')
    return made


def _about_curves() -> str:
    return (
        '<p class="soft">Drag over a chart to zoom in; all charts follow. '
        'Double-click shows all again. With the keyboard: Tab to a chart, '
        'then + and - zoom, the arrows move, 0 shows all.</p>')


def _pictures(runs: Sequence[Run]) -> str:
    made = ''
    for run in runs:
        shown = run.pictures[-MOST_PICTURES:]
        if shown:
            made += f'<h3>{escape(run.name)}</h3><div class="pictures">'
            made += ''.join(
                f'<figure>{embed_picture(path, path.stem)}<figcaption><small>'
                f'{escape(path.stem.replace("_", " "))}</small></figcaption>'
                '</figure>' for path in reversed(shown))
            made += '</div>'
    if made:
        made = (
            '<p class="soft">The loss normalises the pixels of each patch, so '
            'that the prediction itself has no brightness or contrast of its '
            'own; in the last column each patch has been given the true '
            "patch's mean and deviation.</p>") + made
    return made


def _evaluations(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for result in run.evaluations:
            for what, value, interval in results_of(result):
                rows.append([run.name, Path(str(result.get(
                    'checkpoint', ''))).name, result.get('kind', ''),
                    result.get('encoder', ''), what, value, interval])
    if not rows:
        return ('<p>No results of <code>cmae knn</code>, <code>cmae linear'
                '</code> or <code>cmae low-shot</code> with checkpoints of '
                'these folders were found.</p>')
    return table(['run', 'checkpoint', 'evaluation', 'encoder', 'setting',
                  'top-1 %', '95 % interval'], rows, (5, 6), 'Evaluation')


def results_of(result: Mapping[str, Any]) -> List[Tuple[str, str, str]]:
    """Give the accuracies of an evaluation: setting, value, interval."""
    found = []
    if 'top1' in result:
        name = next((k for k in result if k.startswith('best_')), '')
        setting = f'{name[len("best_"):]} = {result[name]:g}' if name else ''
        interval = result.get('interval')
        shown = f'{interval[0]:.2f} to {interval[1]:.2f}' if interval else ''
        return [(setting, f'{result["top1"]:.2f}', shown)]
    for key, value in result.items():
        if f'{key}_std' in result:
            found.append((f'{key} a class', f'{value:.2f}',
                          f'+- {result[f"{key}_std"]:.2f} (deviation)'))
        elif isinstance(value, float) and not key.endswith('_std'):
            found.append((key, f'{value:.2f}', ''))
    return found


def _costs(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        speed = series(run, 'health/images_per_second')[1]
        wait = series(run, 'health/data_wait')[1]
        energy = series(run, 'health/energy_wh')[1]
        rows.append([
            run.name, time_of(run.seconds),
            _last(run, 'health/images_seen', ',.0f'),
            f'{sum(speed) / len(speed):.0f}' if speed else '-',
            f'{sum(wait) / len(wait):.0f} %' if wait else '-',
            _last(run, 'health/device_memory_mb', ',.0f'),
            _last(run, 'health/host_memory_mb', ',.0f'),
            f'{energy[-1] / 1000:.3f} kWh' if energy else 'not known'])
    return table(
        ['run', 'time', 'images', 'images/s', 'waiting for data',
         'device memory, MB', 'host memory, MB', 'energy'], rows,
        range(1, 8), 'Cost') + (
            '<p class="soft">Memory and energy are those of the first process '
            'and its device; energy is known where the driver tells it.</p>')


def settings_of(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """Give the settings of a config by dotted key, those of training only."""
    return {
        key: value for key, value in walk(cfg)
        if not key.startswith(_LEFT_OUT)
        and (not isinstance(value, (Mapping, list, tuple)) or not value
             or all(isinstance(v, (int, float, str)) for v in value)
             and not isinstance(value, Mapping))
        and not re.search(r'\.\d+$', key)
    }


def _find_base(run: Run) -> Optional[str]:
    """Find the name of the packaged config that a run is made from.

    What stands in the run's folder is compared with the names of the packaged
    configs: a file that it names is not run.
    """
    names = [path.stem for path in sorted(run.folder.glob('*.py'))]
    own = run.folder / _SEARCHED
    if own.is_file():
        names[:0] = re.findall(r'after the config (\S+)',
                               own.read_text('utf-8', 'replace'))[:1]
    for name in names:
        try:
            find_packaged_config(name)
        except FileNotFoundError:
            continue
        return name
    return None


def _differences(first: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
                 ) -> List[List[str]]:
    """List settings that differ: the key, and each one's value."""
    columns = [first, *others]
    keys = sorted({key for column in columns for key in column})
    rows = []
    for key in keys:
        values = [repr(column[key]) if key in column else '(not set)'
                  for column in columns]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _configs(runs: Sequence[Run], base: Optional[str]) -> str:
    made, settings = '', {}
    for run in runs:
        try:
            settings[run.name] = settings_of(parse_config(run.config))
        except PlainConfigError as error:
            made += (f'<p>The config of {escape(run.name)} cannot be '
                     f'compared: {escape(error)}.</p>')
    if len(settings) > 1:
        first, *others = settings.values()
        rows = _differences(first, others)
        made += '<h3>What differs between the runs</h3>'
        made += table(['setting', *settings], rows, (), 'Differences'
                      ) if rows else '<p>Nothing.</p>'
    for run in runs:
        if run.name in settings:
            made += _compare_with_base(run, settings[run.name], base)
    for run in runs:
        if run.config:
            made += (f'<details><summary>Whole config of {escape(run.name)}'
                     f'</summary><pre tabindex="0">{escape(run.config)}</pre>'
                     '</details>')
    return made


def _compare_with_base(run: Run, settings: Mapping[str, Any],
                       base: Optional[str]) -> str:
    name = base or _find_base(run)
    heading = f'<h3>{escape(run.name)}: what differs from its base</h3>'
    if name is None:
        return heading + ('<p>Which config it is made from cannot be told; '
                          'name it by <code>--base</code>.</p>')
    try:
        path = name if name == base else find_packaged_config(name)
        theirs = settings_of(load_config(path).to_dict())
    except (ConfigError, FileNotFoundError) as error:
        return heading + f'<p>{escape(error)}</p>'
    rows = _differences(theirs, [settings])
    if not rows:
        return heading + f'<p>Nothing: it is {escape(name)} as it is.</p>'
    return heading + table(['setting', name, run.name], rows, (),
                           f'Differences of {run.name} from {name}')


def _environments(runs: Sequence[Run]) -> str:
    names = sorted({name for run in runs for name in run.environment})
    rows = [[name, *(run.environment.get(name, '-') for run in runs)]
            for name in names]
    if not rows:
        return '<p>The logs do not say.</p>'
    same = [row for row in rows if len(set(row[1:])) == 1]
    differ = [row for row in rows if row not in same]
    made = ''
    if differ:
        made += '<h3>What differs</h3>' + table(
            ['', *(run.name for run in runs)], differ, (), 'Environments')
    if same:
        made += table(['of all runs' if len(runs) > 1 else '', ''],
                      [row[:2] for row in same], (), 'Environment')
    return made

