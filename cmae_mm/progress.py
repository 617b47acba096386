"""Progress of commands and training: a bar on a terminal, or plain lines."""
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from logging import Handler, StreamHandler
from types import TracebackType
from typing import Any

# Seconds between two plain lines, and between two drawings of the bar.
_PLAIN_INTERVAL, _BAR_INTERVAL = 30., 0.1


class Progress:
    """Shows progress on standard error.

    Args:
        total (int): The number of steps.
        what (str): Name of the work, for example 'features'.
        unit (str): Name of a step. Defaults to 'image'.
        initial (int): Number of steps that are already done. Defaults to 0.
        enabled (bool): Whether to show anything. Defaults to True.
        plain (bool): Whether to print lines if standard error is not a
            terminal. Defaults to True.
    """

    def __init__(self,
                 total: int,
                 what: str,
                 unit: str = 'image',
                 initial: int = 0,
                 enabled: bool = True,
                 plain: bool = True) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done = self._initial = initial
        self._begun = self._shown = time.monotonic()
        self._streams: dict[StreamHandler, Any] = {}
        self._bar: Any = None
        terminal = sys.stderr.isatty()
        self._plain = enabled and plain and not terminal
        if enabled and terminal:
            self._bar = _make_bar()
            self._bar.add_task(what, total=total, completed=initial)
            self._bar.start()
            self._bar.console.show_cursor()  # also if the process is killed

    def show_logs_above(self, handlers: Iterable[Handler]) -> None:
        """Print log records of handlers above the bar.

        Args:
            handlers (Iterable[Handler]): The handlers of a logger.
        """
        for handler in handlers if self._bar is not None else ():
            if isinstance(handler, StreamHandler) and handler.stream.isatty():
                # While the bar is shown, this is rich's proxy.
                self._streams[handler] = handler.setStream(sys.stderr)

    def update(self, count: int = 1, total: int | None = None) -> None:
        """Count steps.

        Args:
            count (int): Number of new steps. Defaults to 1.
            total (int, optional): The number of all steps, if it has changed.
        """
        self.done += count
        if total is not None:
            self.total = total
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(0, completed=self.done, total=self.total)
            # Not drawn by a thread: processes are forked meanwhile.
            if now - self._shown >= _BAR_INTERVAL:
                self._shown = now
                try:
                    self._bar.refresh()
                except OSError:  # the terminal was closed
                    self.close()
        if self._plain and now - self._shown >= _PLAIN_INTERVAL:
            self._shown = now
            print(self.describe(now - self._begun), file=sys.stderr,
                  flush=True)

    def describe(self, seconds: float) -> str:
        """Describe the progress in one line.

        Args:
            seconds (float): Time since the beginning.

        Returns:
            str: For example 'features: 2 of 5 images, 20 s left'.
        """
        line = f'{self.what}: {self.done:,} of {self.total:,} {self.unit}s'
        made = self.done - self._initial
        if made <= 0:
            return line
        left = seconds / made * (self.total - self.done)
        return f'{line}, {describe_seconds(left)} left'

    def close(self) -> None:
        """Draw the bar a last time and release the terminal."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError):
                bar.stop()
            for handler, stream in self._streams.items():
                with suppress(OSError):  # it flushes
                    handler.setStream(stream)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, kind: type[BaseException] | None,
                 error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


def _make_bar() -> Any:
    """Make rich's bar, without a thread of its own."""
    from rich import progress
    from rich.console import Console
    return progress.Progress(
        *progress.Progress.get_default_columns(),
        progress.MofNCompleteColumn(),
        console=Console(file=sys.stderr, force_terminal=True),
        auto_refresh=False, redirect_stdout=sys.stdout.isatty())


def describe_seconds(seconds: float) -> str:
    """Format a duration.

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
