#!/usr/bin/env python
"""Print a version's section of the changelog, for its release.

    python tools/release_notes.py v0.1.0

Rejects a tag that differs from the version, and a section without a date.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes_of(tag: str, version: str, changelog: str) -> str:
    """Return the section of a tag's version.

    Args:
        tag (str): Git tag, 'v' and the version.
        version (str): Version of the package.
        changelog (str): The text of CHANGELOG.md.

    Returns:
        str: Markdown, without the heading.

    Raises:
        ValueError: If the tag is of another version, or the changelog has no
            dated section for it, or an empty one.
    """
    if tag != f'v{version}':
        raise ValueError(f'the tag is {tag!r}, but the version is {version}: '
                         f'tag it v{version}, or set cmae_mm/version.py')
    found = re.search(
        rf'^## {re.escape(version)} \(([^)\n]+)\)\n(.*?)(?=^## |\Z)',
        changelog, re.M | re.S)
    if found is None:
        raise ValueError(f'CHANGELOG.md has no section "## {version} (date)"')
    date, notes = found.groups()
    if not re.fullmatch(r'\d{4}-\d{2}-\d{2}', date):
        raise ValueError(f'the section of {version} has ({date}) instead of '
                         'the date of the release, as in (2027-01-31)')
    if not notes.strip():
        raise ValueError(f'the section of {version} is empty')
    return notes.strip()


def main() -> None:
    """Print the notes or an error."""
    if len(sys.argv) != 2:
        sys.exit('usage: release_notes.py TAG')
    text = (ROOT / 'cmae_mm/version.py').read_text()
    version = re.search(r"__version__ = '([^']+)'", text)
    assert version is not None
    try:
        print(notes_of(sys.argv[1], version[1],
                       (ROOT / 'CHANGELOG.md').read_text()))
    except ValueError as error:
        sys.exit(f'release_notes.py: {error}')


if __name__ == '__main__':
    main()
