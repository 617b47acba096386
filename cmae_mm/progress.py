"""How far a command is, and how long it will take.

A bar where a person watches, plain lines where none does.
"""
import sys
import time
from types import TracebackType
from typing import Optional, Type

from tqdm import tqdm

# Seconds between two plain lines.
_BETWEEN = 30.


class Progress:
    """Shows progress on standard error.

    Args:
        total (int): Number of steps in all.
        what (str): What is being done, for example 'features'.
        unit (str): What a step is. Defaults to 'image'.
        initial (int): Number of steps that were done before. Defaults to 0.
        enabled (bool): Whether anything is shown. Defaults to True.
    """

    def __init__(self,
                 total: int,
                 what: str,
                 unit: str = 'image',
                 initial: int = 0,
                 enabled: bool = True) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done = self._initial = initial
        self._begun = self._said = time.monotonic()
        self._plain = enabled and not sys.stderr.isatty()
        self._bar: Optional[tqdm] = None
        if enabled and not self._plain:
            self._bar = tqdm(total=total, initial=initial, unit=unit,
                             desc=what, file=sys.stderr)

    def update(self, count: int = 1, total: Optional[int] = None) -> None:
        """Note that steps were made.

        Args:
            count (int): Number of steps. Defaults to 1.
            total (int, optional): Their number in all, if that is known now.
        """
        self.done += count
        if total is not None:
            self.total = total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(count)
        now = time.monotonic()
        if self._plain and now - self._said >= _BETWEEN:
            self._said = now
            print(self.describe(now - self._begun), file=sys.stderr,
                  flush=True)

    def describe(self, seconds: float) -> str:
        """Say how far it is.

        Args:
            seconds (float): Time that it has taken.

        Returns:
            str: One line.
        """
        line = f'{self.what}: {self.done:,} of {self.total:,} {self.unit}s'
        made = self.done - self._initial
        if made <= 0:
            return line
        left = seconds / made * (self.total - self.done)
        return f'{line}, {describe_seconds(left)} left'

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, kind: Optional[Type[BaseException]],
                 error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        if self._bar is not None:
            self._bar.close()


def describe_seconds(seconds: float) -> str:
    """Write a time for people.

    Args:
        seconds (float): The time.

    Returns:
        str: '20 s', '3 min 20 s' or '2 h 5 min'.
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f'{rest} s'
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'
