"""A page about trainings, in one file."""
import argparse

from ..apis.report import check_report
from .command import Command, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'work_dirs', metavar='WORK_DIR', nargs='+',
        help='work folder of a training; several are laid over each other')
    parser.add_argument(
        '--out', metavar='FILE', default='report.html',
        help='file to write (default: report.html)')
    parser.add_argument(
        '--base', metavar='CONFIG',
        help='config that the runs are compared with (default: the packaged '
        'one that a run is made from, where that can be told)')


def check(args: argparse.Namespace) -> None:
    """Look for the folders, the base and plotly."""
    check_report(args.work_dirs, args.out)
    if args.base is not None:
        from ..packaged import find_config
        find_config(args.base)


def report(args: argparse.Namespace) -> Result:
    """Write the page; say the warnings."""
    from ..apis.report import report
    made = report(args.work_dirs, args.out, args.base)
    for name, sentences in made.warnings.items():
        for sentence in sentences:
            print(f'{name}: {sentence}')
    print(f'Wrote {made.out}, which any browser shows without a network')
    return dict(out=str(made.out), runs=made.runs, warnings=made.warnings)


COMMANDS = [
    Command(
        name='report',
        help='write a page about a training, or several over each other',
        description='Curves to zoom into, pictures, evaluation results with '
        'intervals, warnings in words, what was trained on what, and what it '
        'cost, in one HTML file that needs no network.',
        example='cmae report work_dirs/vit-s_photos\n'
        'cmae report work_dirs/first work_dirs/second --out compared.html',
        add_arguments=add_arguments,
        check=check,
        run=report),
]
