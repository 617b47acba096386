"""Command lines as people write them, whatever the command."""
import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations: ``--enc`` is a mistake."""

    def __init__(self, **kwargs) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End with one sentence and exit status 2."""
        self.exit(2, f'{self.prog}: {message}; see {self.prog} --help\n')
