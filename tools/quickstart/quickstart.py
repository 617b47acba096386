#!/usr/bin/env python
"""Pre-train a small CMAE, evaluate it, export it; see quickstart.sh.

Shows a few lines of progress; what the libraries print is in output.txt in
the work folder.
"""
import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--data', type=Path, help='any folder of images (default: tiles of '
        'photographs, made in data/tiles)')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/quickstart'),
        help='folder to write to (default: work_dirs/quickstart)')
    parser.add_argument(
        '--max-iters', type=int,
        help="training steps (default: the config's, 300)")
    parser.add_argument(
        '--debug', action='store_true',
        help='show where an error comes from (CMAE_DEBUG=1 does the same)')
    parser.add_argument(
        '--from-folder', type=Path, default=Path(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data is not None:
        args.data = (args.from_folder / args.data).resolve()
        if not args.data.is_dir():
            parser.error(f'--data: there is no folder {args.data}')
    if args.max_iters is not None and args.max_iters < 1:
        parser.error(f'--max-iters must be 1 or more, but got '
                     f'{args.max_iters}')
    return args


@contextmanager
def quiet(log: Path) -> Iterator[Callable[[str], None]]:
    """Send everything that is printed, by workers too, to a file.

    Args:
        log (Path): The file; it is written anew.

    Yields:
        Callable: Prints a line on the console all the same.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    console = [os.dup(1), os.dup(2)]
    with open(log, 'w') as file, os.fdopen(os.dup(1), 'w') as out:

        def say(text: str) -> None:
            print(text, file=out, flush=True)
            print(text, file=file, flush=True)

        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield say
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), console):
                os.dup2(saved, number)
                os.close(saved)


def main() -> None:
    """Run all steps; errors are shown on the console."""
    args = parse_args()
    log = args.work_dir / 'output.txt'
    start = time.time()
    try:
        with quiet(log) as say:
            say('Loading the libraries (10 to 20 seconds)')
            from cmae_mm.apis.arguments import load_libraries
            load_libraries()
            from quickstart_steps import run_steps
            run_steps(args, say, start)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from cmae_mm.cli.errors import fail
        print(f'All output is in {log}', file=sys.stderr)
        fail(error, 'quickstart.sh', args.debug)


if __name__ == '__main__':
    main()
