"""A report about training runs."""
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Dict, List, NamedTuple, Optional, Sequence

from ..files import write_file
from ..packaged import install_command
from .arguments import ArgumentError, ConfigName, Output, PathLike, command


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


def _check(work_dirs: Sequence[PathLike], **others: Any) -> None:
    """Check that the folders exist and plotly is installed."""
    for folder in work_dirs:
        if not Path(folder).expanduser().is_dir():
            raise ArgumentError(f'there is no folder {folder}')
    if not importlib.util.find_spec('plotly'):
        raise ImportError(
            'the curves of a report are drawn by plotly, which is not '
            f'installed: install it with `{install_command("report")}`')


@command(check=_check)
def report(work_dirs: Sequence[PathLike],
           out: Annotated[PathLike, Output('.html', '.htm')] = 'report.html',
           base: Optional[ConfigName] = None) -> WrittenReport:
    """Write a page about a training, or several over each other.

    Curves to zoom into, pictures, evaluation results with intervals, health
    warnings, settings, environment and cost, in one HTML file that needs no
    network.

    Example::

        $ cmae report work_dirs/vit-s_photos
        $ cmae report work_dirs/first work_dirs/second --out compared.html

    Args:
        work_dirs: Work folders of trainings; the curves of several share
            their charts.
        out: HTML file to write. Defaults to report.html.
        base: Config to compare the runs with. Defaults to the packaged config
            of each run, if it is known.

    Returns:
        WrittenReport: The file, and the warnings.

    Raises:
        ArgumentError: If an argument is invalid.
        FileNotFoundError: If no folder has a log.
        ImportError: If plotly is not installed.
    """
    from ..visualization.html_report import build_report
    made = build_report([Path(folder).expanduser() for folder in work_dirs],
                        None if base is None else str(base))
    file = Path(out).expanduser()
    write_file(file, made.html)
    for name, sentences in made.warnings.items():
        for sentence in sentences:
            print(f'{name}: {sentence}')
    print(f'Wrote {file}, which any browser shows without a network')
    return WrittenReport(file, made.runs, made.warnings)
