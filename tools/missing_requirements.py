#!/usr/bin/env python
"""List what of requirements/NAME.txt is not installed; exit 1 if anything.

Takes the names of the files, without the ending. A torch that is there
already and is new enough for cmae_mm is left alone, whatever its build. Also
looks for cmae_mm itself, which must be installed from this clone.
"""
import sys
from importlib import metadata
from pathlib import Path
from typing import Iterator, List

from packaging.requirements import Requirement
from packaging.version import Version

LEAST = dict(torch=Version('2.1'), torchvision=Version('0.16'))
ROOT = Path(__file__).resolve().parents[1]


def read_requirements(name: str) -> List[Requirement]:
    """Read a requirements file of this project."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [
        Requirement(line) for line in lines
        if line.strip() and not line.startswith('#')
    ]


def find_missing(names: List[str]) -> Iterator[str]:
    """Yield a line for each requirement that is not met."""
    for name in names:
        for need in read_requirements(name):
            try:
                found = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                yield f'{need} is not installed'
                continue
            if name == 'torch' and Version(found) >= LEAST[need.name]:
                continue
            if not need.specifier.contains(found, prereleases=True):
                yield f'{need} is needed, {found} is installed'
    try:
        import importlib.util
        spec = importlib.util.find_spec('cmae_mm')
        origin = Path(spec.origin).resolve() if spec else None
    except (ImportError, AttributeError):
        origin = None
    if origin is None or ROOT not in origin.parents:
        yield f'cmae_mm is not installed from {ROOT}'


if __name__ == '__main__':
    # The script's own folder must not hide or pretend an installation.
    sys.path = [p for p in sys.path if Path(p or '.').resolve() not in
                (ROOT, ROOT / 'tools')]
    missing = list(find_missing(sys.argv[1:]))
    print('\n'.join(missing) or 'nothing is missing')
    sys.exit(bool(missing))
