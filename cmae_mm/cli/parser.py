"""Command lines as people write them, whatever the command."""
import argparse
import difflib
from typing import Any, Callable, Iterable, List, NoReturn


def near(word: str, known: Iterable[str]) -> str:
    """Name what a word may have been meant as, for the end of a sentence.

    Args:
        word (str): What was typed.
        known (Iterable[str]): What could have been.

    Returns:
        str: '; did you mean --epochs?', or '' where nothing is near.
    """
    found = difflib.get_close_matches(word, list(known), n=3, cutoff=0.7)
    return f'; did you mean {" or ".join(found)}?' if found else ''


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations: ``--enc`` is a mistake."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False, **kwargs)

    def parse_known_args(self,
                         args: Any = None,
                         namespace: Any = None) -> Any:
        """Parse, and refuse what is unknown by its name and neighbours."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(self._describe_unknown(rest))
        return namespace, rest

    def _describe_unknown(self, words: List[str]) -> str:
        for word in words:
            name = word.partition('=')[0]
            if name.startswith('-'):
                options = [o for action in self._actions
                           if action.help != argparse.SUPPRESS
                           for o in action.option_strings]
                return f'there is no option {name}{near(name, options)}'
        return f'there is one argument too many: {words[0]!r}'

    def error(self, message: str) -> NoReturn:
        """End with one sentence and exit status 2."""
        message = message.removeprefix('argument ')
        end = '' if message.endswith('?') else ';'
        self.exit(2, f'{self.prog}: {message}{end} see {self.prog} --help\n')


def at_least(least: int) -> Callable[[str], int]:
    """Make a type of argument: a whole number of some size or more.

    Args:
        least (int): The smallest number that is allowed.

    Returns:
        Callable: For argparse's ``type``.
    """

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least:
            raise argparse.ArgumentTypeError(
                f'must be a whole number of {least} or more, but got {text!r}')
        return number

    return whole_number


def above_zero(text: str) -> float:
    """Read a number above 0; a type of argument."""
    try:
        number = float(text)
    except ValueError:
        number = 0.
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(
            f'must be a number above 0, but got {text!r}')
    return number
