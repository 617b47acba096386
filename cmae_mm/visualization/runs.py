"""Work folders of training runs: logs, results, loss curves."""
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..files import PathLike

Row = dict[str, float]
# Names of a row's position; all other names are measurements.
PLACES = ('step', 'iter', 'epoch')
# Results of the evaluation commands, one JSON object per line.
EVALUATIONS = 'evaluations.jsonl'
# Errors of reading a damaged JSON line.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
           RecursionError, OSError)


class Accuracy(NamedTuple):
    """A result of an evaluation, as text.

    Args:
        checkpoint (str): Name of the checkpoint file.
        kind (str): The evaluation, for example 'knn'.
        encoder (str): 'online' or 'target'.
        setting (str): For example 'k = 20'.
        top1 (str): Top-1 accuracy, or the metric of the setting, in percent.
        interval (str): The 95 % interval or the standard deviation.
    """

    checkpoint: str
    kind: str
    encoder: str
    setting: str
    top1: str
    interval: str


class Run(NamedTuple):
    """One training run.

    Args:
        name (str): The name, unique among the runs of a report.
        folder (Path): The work folder.
        rows (list[Row]): Logged values sorted by iteration, each with
            ``iter``. Steps repeated after a restart replace earlier ones.
        config (str): The config as text, '' if missing.
        environment (dict[str, str]): Versions and devices.
        pictures (list[Path]): Pictures drawn during training.
        evaluations (list[Accuracy]): Results of the run's checkpoints.
        classes (dict[str, Dict]): Table of the classes of a fine-tuned model
            by part.
        seconds (float): Time of all iterations.
        damage (list[str]): A sentence for each damaged file.
    """

    name: str
    folder: Path
    rows: list[Row]
    config: str
    environment: dict[str, str]
    pictures: list[Path]
    evaluations: list[Accuracy]
    classes: dict[str, dict[str, Any]]
    seconds: float
    damage: list[str]


def read_run(folder: PathLike, name: str | None = None) -> Run:
    """Read a work folder.

    Lines of logs that cannot be parsed are skipped and reported in
    ``damage``.

    Args:
        folder (str | PathLike): The folder.
        name (str, optional): Name of the run. Defaults to the folder's name.

    Returns:
        Run: The run.

    Raises:
        FileNotFoundError: If the folder contains no log.
        OSError: If a file cannot be read.
    """
    folder = Path(folder)
    damage: list[str] = []
    rows = _merge_starts([_read_lines(path, _parse_row, damage)
                          for path in _find_logs(folder)])
    texts = [path.read_text('utf-8', 'replace')
             for path in sorted(folder.glob('*/*.log'))]
    configs = sorted(folder.glob('*/vis_data/config.py'))
    scores, classes = _read_metrics(folder, damage)
    return Run(
        name=name or folder.name,
        folder=folder,
        rows=rows,
        config=configs[-1].read_text('utf-8', 'replace') if configs else '',
        environment=_read_environment(texts[-1]) if texts else {},
        pictures=sorted(folder.glob('*/vis_data/vis_image/*.png'),
                        key=lambda p: (p.parts[-4], len(p.name), p.name)
                        ) or sorted(folder.glob('*_*.png')),
        evaluations=[*scores, *_read_evaluations(folder, damage)],
        classes=classes,
        seconds=_count_seconds(rows),
        damage=damage)


def _find_logs(folder: Path) -> list[Path]:
    """List the logged scalars of a work folder, the newest last.

    Raises:
        FileNotFoundError: If there is no log.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{folder} has no */vis_data/scalars.json; use the work folder of '
            'a training')
    return logs


def series(run: Run, name: str) -> list[list[float]]:
    """Return the iterations and the finite values of one curve.

    Args:
        run (Run): The run.
        name (str): A logged name, for example 'loss_ct'.

    Returns:
        list[list[float]]: Iterations, values.
    """
    points = [(row['iter'], row[name]) for row in run.rows
              if math.isfinite(row.get(name, math.nan))]
    return [[x for x, _ in points], [y for _, y in points]]


def _read_lines(path: Path, parse: Callable[[str], Any], damage: list[str]
                ) -> list[Any]:
    """Parse the lines of a file and report damaged ones.

    A last line without a line break is ignored, since it may be incomplete.
    """
    found, bad = [], []
    lines = path.read_text('utf-8', 'replace').split('\n')[:-1]
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse(line))
        except _DAMAGE:
            bad.append(number)
    if bad:
        damage.append(f'{path}: skipped {len(bad)} of {len(lines)} lines that '
                      f'cannot be parsed, the first is line {bad[0]}')
    return found


def _parse_row(line: str) -> Row:
    """Parse a line of ``scalars.json``; drop values that are not numbers."""
    row = {name: float(value) for name, value in json.loads(line).items()
           if isinstance(value, (int, float))}
    row['step']
    return {name: int(value) if name in PLACES else value
            for name, value in row.items()}


def _merge_starts(starts: list[list[Row]]) -> list[Row]:
    """Join the rows of all starts of a run, sorted by iteration."""
    merged: list[Row] = []
    for rows in starts:
        # The last iteration of each epoch.
        epochs = {row['epoch']: row['iter'] for row in rows
                  if 'loss' in row and {'epoch', 'iter'} <= set(row)}
        # Validation rows have the epoch as step, in training by epochs.
        placed = [dict(row, iter=row.get('iter', epochs.get(
            row['step'], row['step']))) for row in rows]
        first = min((row['iter'] for row in placed), default=math.inf)
        # A restart repeats the steps after the last checkpoint.
        merged = [row for row in merged if row['iter'] < first] + placed
    return sorted(merged, key=lambda row: row['iter'])


def _count_seconds(rows: list[Row]) -> float:
    """Sum the iteration times; each row has the mean of its interval."""
    seconds, last = 0., 0.
    for row in rows:
        if 'loss' in row and math.isfinite(row.get('time', math.nan)):
            seconds += row['time'] * max(row['iter'] - last, 0)
            last = row['iter']
    return seconds


def _read_environment(text: str) -> dict[str, str]:
    """Read the system environment at the start of mmengine's log."""
    block = re.search(r'System environment:\n(.*?)\n-{10,}', text, re.S)
    lines = re.findall(r'^ {4}([A-Za-z][\w. ]*): (\S.*)$',
                       block[1] if block else '', re.M)
    return {name: value for name, value in lines if len(value) < 200}


def _read_evaluations(folder: Path, damage: list[str]) -> list[Accuracy]:
    """Find the evaluations of a run's checkpoints."""
    root = folder.resolve()
    paths = [root / EVALUATIONS, *sorted(root.parent.glob(f'*/{EVALUATIONS}'))]
    found: dict[Accuracy, None] = {}
    for path in dict.fromkeys(path for path in paths if path.is_file()):
        for checkpoint, accuracies in _read_lines(
                path, _parse_evaluation, damage):
            if root in checkpoint.parents:
                found.update(dict.fromkeys(accuracies))
    return list(found)


def _read_metrics(folder: Path, damage: list[str]
                  ) -> tuple[list[Accuracy], dict[str, dict[str, Any]]]:
    """Read the scores of a fine-tuned model, from ``metrics.json``.

    Returns:
        tuple: The scores, and a table of the classes by part.
    """
    file = folder / 'metrics.json'
    if not file.is_file():
        return [], {}
    try:
        metrics = json.loads(file.read_text('utf-8'))
        parts = {part: metrics[part] for part in ('val', 'test')
                 if part in metrics}
        scores = [Accuracy('best.pth', str(metrics['task']), '',
                           f'{name}, {part}', f'{value:.2f}', '')
                  for part, found in parts.items()
                  for name, value in found.items() if isinstance(value, float)]
        measure = 'AP' if metrics['task'] == 'detect' else 'IoU'
        return scores, {part: _class_table(found['per_class'], measure)
                        for part, found in parts.items()
                        if found.get('per_class')}
    except _DAMAGE:
        damage.append(f'{file} cannot be read and is skipped')
        return [], {}


def _class_table(classes: dict[str, Any], measure: str) -> dict[str, Any]:
    """Make a table of the measures of each class, or of one measure."""
    rows = [(name, found if isinstance(found, dict) else {measure: found})
            for name, found in classes.items()]
    return dict(
        header=['class', *rows[0][1]], text_columns=1,
        rows=[[name, *(f'{v:.1f}' if isinstance(v, float) else v
                       for v in found.values())] for name, found in rows])


def _parse_evaluation(line: str) -> tuple[Path, list[Accuracy]]:
    """Parse a line of ``evaluations.jsonl``."""
    result = json.loads(line)
    checkpoint = Path(result['checkpoint']).resolve()
    layers = ' '.join(map(str, result.get('layer', ())))
    fixed = (checkpoint.name, str(result['kind']),
             str(result.get('encoder', '')) + f', layer {layers}' * bool(
                 layers))
    return checkpoint, [Accuracy(*fixed, *row) for row in accuracies(result)]


def accuracies(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the setting, accuracy and interval of an evaluation's result."""
    if 'top1' in result:
        best = [f'{name[len("best_"):]} = {value:g}'
                for name, value in result.items() if name.startswith('best_')]
        low_high = result.get('interval')
        interval = '{:.2f} to {:.2f}'.format(*low_high) if low_high else ''
        return [(', '.join(best), f'{result["top1"]:.2f}', interval)]
    if 'mAP' in result:
        return [('mAP', f'{result["mAP"]:.2f}', '')]
    found = []
    for name, value in result.items():
        if f'{name}_std' in result:
            found.append((f'{name} a class', f'{value:.2f}',
                          f'+- {result[f"{name}_std"]:.2f} (deviation)'))
        elif isinstance(value, float) and not name.endswith('_std'):
            found.append((name, f'{value:.2f}', ''))
    return found
