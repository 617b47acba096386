"""A report about training runs."""
import importlib.util
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

from ..files import check_output, write_file
from ..packaged import find_config, install_command
from .checks import ArgumentError, PathLike


class WrittenReport(NamedTuple):
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
           base: Optional[str] = None) -> WrittenReport:
    """Write one HTML page about one or several trainings.

    Curves to zoom into, pictures, evaluation results with intervals, health
    warnings, settings, environment and cost. The page needs no network.

    Args:
        folders (Sequence[str | PathLike]): Work folders; the curves of
            several share their charts.
        out (str | PathLike): File to write. Defaults to 'report.html'.
        base (str, optional): Config to compare the runs with. Defaults to the
            packaged config of each run, if it is known.

    Returns:
        WrittenReport: The file, and the warnings.

    Raises:
        ArgumentError: If a folder does not exist, or ``out`` is not HTML.
        FileNotFoundError: If no folder has a log.
        ImportError: If plotly is not installed.
    """
    check_report(folders, out, base)
    from ..visualization.html_report import build_report
    made = build_report([Path(folder).expanduser() for folder in folders],
                        base)
    file = Path(out).expanduser()
    write_file(file, made.html)
    return WrittenReport(file, made.runs, made.warnings)


def check_report(folders: Sequence[PathLike], out: PathLike,
                 base: Optional[str] = None) -> None:
    """Check the arguments of :func:`report`."""
    for folder in folders:
        if not Path(folder).expanduser().is_dir():
            raise ArgumentError(f'there is no folder {folder}')
    if Path(out).suffix.lower() not in ('.html', '.htm'):
        raise ArgumentError(
            f'a report is written as .html, but out is {str(out)!r}')
    check_output(Path(out).expanduser())
    if base is not None:
        find_config(base)
    if not importlib.util.find_spec('plotly'):
        raise ImportError(
            'the curves of a report are drawn by plotly, which is not '
            f'installed: install it with `{install_command("report")}`')
