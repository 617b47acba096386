#!/usr/bin/env python
"""List what setup.cfg asks for and is not installed; exit 1 if anything.

Takes names of extras; what every installation needs is always looked at, and
cmae_mm itself, which must be installed from this clone. With --constraints it
prints requirements/constraints.txt without what is installed already and
fits: pip then leaves that as it is, whatever its version or build.
"""
import argparse
import configparser
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def read_requirements(extras: list[str]) -> list:
    """Read what setup.cfg lists for every installation and for extras.

    Args:
        extras (list[str]): Names of extras.

    Returns:
        list[Requirement]: Those that apply to this Python.

    Raises:
        KeyError: If there is no such extra.
    """
    from packaging.requirements import Requirement
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    lists = [config['options']['install_requires']]
    lists += [config['options.extras_require'][name] for name in extras]
    lines = '\n'.join(lists).splitlines()
    needs = [
        Requirement(line) for line in lines
        if line.strip() and not line.startswith('#')
    ]
    return [n for n in needs if n.marker is None or n.marker.evaluate()]


def installed(name: str) -> str | None:
    """Give the installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_missing(extras: list[str]) -> Iterator[str]:
    """Yield a line for each requirement that is not met."""
    for need in read_requirements(extras):
        found = installed(need.name)
        if found is None:
            yield f'{need} is not installed'
        elif not need.specifier.contains(found, prereleases=True):
            yield f'{need} is needed, {found} is installed'
    try:
        spec = importlib.util.find_spec('cmae_mm')
        origin = Path(spec.origin).resolve() if spec else None
    except (ImportError, AttributeError, TypeError):
        origin = None
    if origin is None or ROOT not in origin.parents:
        yield f'cmae_mm is not installed from {ROOT}'


def remaining_constraints(extras: list[str]) -> Iterator[str]:
    """Yield the constraints on what is not installed or does not fit."""
    from packaging.requirements import Requirement
    fits = set()
    for need in read_requirements(extras):
        found = installed(need.name)
        if found is not None and need.specifier.contains(found, True):
            fits.add(need.name.lower())
    # A torch of the user's own comes with its torchvision or without one.
    if installed('torch') is not None and 'torch' in fits:
        fits.add('torchvision')
    path = ROOT / 'requirements/constraints.txt'
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith('#'):
            if Requirement(line).name.lower() not in fits:
                yield line


def main() -> int:
    """Read the command line and print the list."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('extras', nargs='*', help='of setup.cfg')
    parser.add_argument('--constraints', action='store_true')
    args = parser.parse_args()
    if args.constraints:
        print('\n'.join(remaining_constraints(args.extras)))
        return 0
    missing = list(find_missing(args.extras))
    print('\n'.join(missing) or 'nothing is missing')
    return int(bool(missing))


if __name__ == '__main__':
    # The script's own folder must not hide or pretend an installation.
    sys.path = [p for p in sys.path if Path(p or '.').resolve() not in
                (ROOT, ROOT / 'tools')]
    sys.exit(main())
