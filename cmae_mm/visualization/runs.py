"""What a training has left in its work folder, read for people."""
import json
import math
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

Row = Dict[str, float]
# Names that say where a row belongs, not what was measured.
PLACES = ('step', 'iter', 'epoch')
# One line for each evaluation of a checkpoint, written by the commands.
EVALUATIONS = 'evaluations.jsonl'


class Run(NamedTuple):
    """One training.

    Args:
        name (str): Its name, unlike those of others shown with it.
        folder (Path): Its work folder.
        rows (List[Row]): What was logged, in the order of iterations, each
            with ``iter``. Of steps that were made twice, as after a kill, the
            later ones.
        config (str): Its config as text, '' where there is none.
        environment (Dict[str, str]): Versions and devices, by name.
        pictures (List[Path]): Pictures that were drawn while it went on.
        evaluations (List[Dict[str, Any]]): Results of its checkpoints.
        total (int | None): Iterations of the whole training, if known.
        seconds (float): Time that its iterations took.
    """

    name: str
    folder: Path
    rows: List[Row]
    config: str
    environment: Dict[str, str]
    pictures: List[Path]
    evaluations: List[Dict[str, Any]]
    total: Optional[int]
    seconds: float


def read_run(folder: Path, name: Optional[str] = None) -> Run:
    """Read a work folder.

    Args:
        folder (Path): The folder.
        name (str, optional): What to call the run. Defaults to the folder's
            name.

    Returns:
        Run: What is there.

    Raises:
        FileNotFoundError: If the folder holds no log.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{folder} holds no */vis_data/scalars.json; is it the work '
            'folder of a training?')
    rows = _merge([list(_read_lines(path)) for path in logs])
    texts = [p.read_text('utf-8', 'replace') for p in sorted(
        folder.glob('*/*.log'))]
    configs = sorted(folder.glob('*/vis_data/config.py'))
    return Run(
        name=name or folder.name,
        folder=folder,
        rows=rows,
        config=configs[-1].read_text('utf-8') if configs else '',
        environment=_read_environment(texts[-1]) if texts else {},
        pictures=sorted(folder.glob('*/vis_data/vis_image/*.png'),
                        key=lambda p: (p.parts[-4], _number(p), p.name)),
        evaluations=_read_evaluations(folder),
        total=_read_total(texts),
        seconds=_count_seconds(rows))


def _number(path: Path) -> int:
    found = re.search(r'(\d+)$', path.stem)
    return int(found[1]) if found else 0


def _read_lines(path: Path) -> Iterator[Dict[str, Any]]:
    for line in path.read_text('utf-8').splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # killed while it was written
            continue
        if isinstance(row, dict) and 'step' in row:
            yield row


def _kind(row: Row) -> str:
    if 'loss' in row:
        return 'train'
    return 'health' if any(k.startswith('health/') for k in row) else 'metric'


def _merge(starts: List[List[Row]]) -> List[Row]:
    """Put the rows of all starts of a run in the order of iterations."""
    kept: Dict[Any, Row] = {}
    for rows in starts:
        epochs: Dict[int, int] = {}  # the last iteration of each
        for row in rows:
            if 'loss' in row and 'epoch' in row:
                epochs[int(row['epoch'])] = int(row['iter'])
        placed = []
        for row in rows:
            step = int(row['step'])
            # Validation counts epochs, where training is by epochs.
            iteration = row.get('iter', epochs.get(step, step))
            placed.append(dict(row, iter=int(iteration)))
        if not placed:
            continue
        first = min(row['iter'] for row in placed)
        # What a stopped run made after its last checkpoint was made again.
        kept = {k: v for k, v in kept.items() if v['iter'] < first}
        for row in placed:
            names = tuple(sorted(n for n in row if n not in PLACES))
            key = names if _kind(row) == 'metric' else _kind(row)
            kept[key, row['iter']] = row
    return sorted(kept.values(), key=lambda row: row['iter'])


def series(run: Run, name: str) -> List[List[float]]:
    """Give one curve.

    Args:
        run (Run): The run.
        name (str): What was logged, for example 'loss_ct'.

    Returns:
        List[List[float]]: Iterations, and finite values.
    """
    points = [(row['iter'], row[name]) for row in run.rows
              if isinstance(row.get(name), (int, float))
              and math.isfinite(row[name])]
    return [[p[0] for p in points], [float(p[1]) for p in points]]


def names_of(run: Run) -> List[str]:
    """List what a run has logged."""
    return sorted({name for row in run.rows for name in row} - set(PLACES))


def _count_seconds(rows: List[Row]) -> float:
    """Add up the times of iterations, of which each row has a mean."""
    seconds, last = 0., 0
    for row in rows:
        if 'loss' in row and math.isfinite(row.get('time', math.nan)):
            seconds += row['time'] * max(row['iter'] - last, 0)
            last = int(row['iter'])
    return seconds


def _read_total(texts: List[str]) -> Optional[int]:
    """Find the length of the training in what its log says."""
    for text in reversed(texts):
        by_iter = re.findall(r'Iter\(train\) \[ *\d+/(\d+)\]', text)
        if by_iter:
            return int(by_iter[-1])
        by_epoch = re.findall(r'Epoch\(train\) +\[ *\d+\]\[ *\d+/(\d+)\]',
                              text)
        epochs = re.findall(r"max_epochs=(\d+)", text)
        if by_epoch and epochs:
            return int(by_epoch[-1]) * int(epochs[-1])
    return None


def _read_environment(text: str) -> Dict[str, str]:
    """Read the block that mmengine begins its log with."""
    found: Dict[str, str] = {}
    block = re.search(r'System environment:\n(.*?)\n-{10,}', text, re.S)
    for line in block[1].splitlines() if block else ():
        match = re.match(r' {4}([A-Za-z][\w. ]*): (\S.*)', line)
        if match and len(match[2]) < 200:
            found[match[1]] = match[2]
    return found


def _read_evaluations(folder: Path) -> List[Dict[str, Any]]:
    """Read what was measured with a run's checkpoints."""
    places = [folder / EVALUATIONS, *sorted(
        folder.resolve().parent.glob(f'*/{EVALUATIONS}'))]
    found: Dict[str, Dict[str, Any]] = {}
    for path in places:
        if not path.is_file():
            continue
        for line in path.read_text('utf-8').splitlines():
            try:
                result = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not isinstance(result, dict):
                continue
            checkpoint = Path(str(result.get('checkpoint', '')))
            if folder.resolve() in checkpoint.resolve().parents:
                found[line] = result
    summary = folder / 'summary.json'  # of the quickstart
    if summary.is_file():
        try:
            values = dict(json.loads(summary.read_text('utf-8')))
        except (ValueError, TypeError):  # not the quickstart's
            values = {}
        for key, what in (('knn_top1_random_init', 'random weights'),
                          ('knn_top1', 'after pre-training')):
            if values.get(key) is not None:
                found[key] = dict(kind='knn', checkpoint=what,
                                  top1=values[key])
    return list(found.values())


def name_runs(folders: List[Path]) -> List[str]:
    """Give each folder a short name of its own.

    Args:
        folders (List[Path]): Work folders.

    Returns:
        List[str]: The last parts of their paths, as many as tell them apart.
    """
    resolved = [folder.resolve() for folder in folders]
    for depth in range(1, 6):
        names = ['/'.join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
