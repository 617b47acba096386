"""Comparing with a recorded trace of the method's released code."""
import argparse
from pathlib import Path

from .command import Command, Result
from .parser import above_zero


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'trace', metavar='TRACE', help='trace, a .safetensors file')
    parser.add_argument(
        '--tolerance', type=above_zero, default=1e-4, metavar='X',
        help='largest relative error that is allowed (default: 1e-4)')


def check(args: argparse.Namespace) -> None:
    """Look for the trace.

    Raises:
        FileNotFoundError: If it is not there.
    """
    if not Path(args.trace).is_file():
        raise FileNotFoundError(f'there is no trace {args.trace}')


def verify(args: argparse.Namespace) -> Result:
    """Compare, and print the table."""
    from ..engine.replay import verify_trace
    from ..evaluation.report import print_table
    rows = verify_trace(args.trace)
    print_table(['recorded', 'rel_err'],
                [[row.name, f'{row.error:.3e}'] for row in rows])
    worst = max(row.error for row in rows)
    print(f'max_rel_err={worst:.3e}')
    return dict(
        trace=args.trace, max_rel_err=worst, tolerance=args.tolerance,
        exit_status=int(not worst <= args.tolerance))


COMMANDS = [
    Command(
        name='verify',
        help='compare the numbers with a recorded trace of the released code',
        description='Replays every step of the trace and prints the largest '
        'relative error of each recorded tensor (relative to its largest '
        'magnitude). Exit status: 0 within the tolerance, 1 outside, 2 for a '
        'file that cannot be read.',
        example='cmae verify cmae_reference.safetensors --tolerance 1e-4',
        add_arguments=add_arguments,
        check=check,
        run=verify,
        error_status=2),
]
