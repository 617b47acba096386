"""The arguments of a report, looked at before anything is loaded."""
import importlib.util
from pathlib import Path
from typing import Sequence

from ..files import check_output
from ..packaged import install_command
from .checks import ArgumentError, PathLike


def check_report(folders: Sequence[PathLike], out: PathLike) -> None:
    """Check the arguments of :func:`cmae_mm.apis.report.report`.

    Raises:
        ArgumentError: If a folder is none, or the report has another ending.
        OSError: If the report cannot be written.
        ImportError: If plotly is missing.
    """
    for folder in folders:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ArgumentError(f'there is no folder {folder}')
        if not list(path.glob('*/vis_data/scalars.json')):
            raise ArgumentError(
                f'{folder} holds no */vis_data/scalars.json; is it the work '
                'folder of a training?')
    if Path(out).suffix.lower() not in ('.html', '.htm'):
        raise ArgumentError(
            f'a report is written as .html, but out is {str(out)!r}')
    check_output(Path(out).expanduser())
    if not importlib.util.find_spec('plotly'):
        raise ImportError(
            'the curves of a report are drawn by plotly, which is not '
            f'installed: install it with `{install_command("report")}`')
