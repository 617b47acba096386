"""The course of a training, from the log that mmengine writes."""
import json
from pathlib import Path
from typing import Dict, List

from ..files import atomic_path

KEYS = ('loss', 'loss_rc', 'loss_ct', 'rho_pos', 'rho_neg')


def read_scalars(work_dir: str) -> List[Dict[str, float]]:
    """Read the training lines of the newest run in a work folder.

    Args:
        work_dir (str): A runner's work folder.

    Returns:
        List[Dict[str, float]]: One dict per line, with ``step``, ``loss``...

    Raises:
        FileNotFoundError: If the folder holds no log.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{work_dir} holds no */vis_data/scalars.json; is it the work '
            'folder of a training?')
    lines = map(json.loads, logs[-1].read_text().splitlines())
    return [line for line in lines if 'loss' in line]


def save_loss_curve(path: str, scalars: List[Dict[str, float]]) -> None:
    """Draw the losses, and beside them the cosines that tell of collapse.

    Args:
        path (str): The PNG.
        scalars (List[Dict[str, float]]): See :func:`read_scalars`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, keys, title in ((left, KEYS[:3], 'losses'),
                              (right, KEYS[3:], 'cosine to the target')):
        for key in keys:
            points = [(s['step'], s[key]) for s in scalars if key in s]
            if points:
                axes.plot(*zip(*points), label=key)
        axes.set(title=title, xlabel='iteration')
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
