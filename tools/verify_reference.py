#!/usr/bin/env python
"""Compare this plugin with a recorded trace of the released code.

Replays every step of the trace through ``CMAE.loss``, the optimizer wrapper
and ``TargetUpdateHook``, and prints the largest error of each recorded tensor,
relative to its largest magnitude. The last line is ``max_rel_err=X``. Exit
status: 0 within the tolerance, 1 outside, 2 for a file that cannot be read.
"""
import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

PROG = 'verify_reference.py'


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not 0 < value < float('inf'):
        raise ValueError
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'trace', metavar='TRACE', help='the trace, a .safetensors file')
    parser.add_argument(
        '--tolerance', type=above_zero, default=1e-4, metavar='X',
        help='the largest relative error allowed (default: 1e-4)')
    parser.add_argument(
        '--json', action='store_true',
        help='print the result as JSON in the last line')
    return parser.parse_args(arguments)


def verify_trace(path: str) -> list[Any]:
    """Compare this plugin with a recorded trace.

    Args:
        path (str): The ``.safetensors`` file: a trace of CMAE's released code
            or of the hybrid encoder's published code, see its metadata.

    Returns:
        list[Row]: The largest error of each recorded tensor, relative to its
        largest magnitude.

    Raises:
        CheckpointError: If the file is not a trace or is inconsistent.
    """
    from mmengine.registry import DefaultScope
    from reference import replay_convvit, replay_vit
    from reference.trace import read_trace

    from cmae_mm.checkpoints import CheckpointError
    try:
        trace = read_trace(path)
        hybrid = replay_convvit.is_of_convvit(trace.meta)
        module = replay_convvit if hybrid else replay_vit
        module.check_trace(trace, path)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return list(module.replay(trace))
    except CheckpointError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError,
            AssertionError) as error:
        # Metadata and tensors that do not fit each other.
        raise CheckpointError(
            f'{path} is not a consistent trace: {type(error).__name__}: '
            f'{error}') from error


def main(arguments: list[str] | None = None) -> None:
    """Compare, print the table and exit."""
    args = parse(arguments)
    if not Path(args.trace).is_file():
        print(f'{PROG}: there is no trace {args.trace}', file=sys.stderr)
        sys.exit(2)
    # Of mmcv without operators, which are not needed here.
    warnings.filterwarnings(
        'ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    try:
        import cmae_mm
    except ImportError as error:
        sys.exit(f"{PROG}: {error}; run `pip install -e '.[onedl]'` in the "
                 'clone first')
    from cmae_mm.checkpoints import CheckpointError
    from cmae_mm.evaluation.probes import print_table
    cmae_mm.register()
    try:
        rows = verify_trace(args.trace)
    except CheckpointError as error:
        print(f'{PROG}: {error}', file=sys.stderr)
        sys.exit(2)
    print_table(['recorded', 'rel_err'],
                [[row.name, f'{row.error:.3e}'] for row in rows])
    worst = max(row.error for row in rows)
    print(f'max_rel_err={worst:.3e}')
    if args.json:
        print(json.dumps(dict(trace=args.trace, max_rel_err=worst,
                              tolerance=args.tolerance)))
    sys.exit(int(not worst <= args.tolerance))


if __name__ == '__main__':
    main()
