"""Signals that stop training after the current step."""
import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import Callable, Optional

from torch.utils.data import DataLoader

# Exit statuses: EX_TEMPFAIL of sysexits.h, on which a scheduler can requeue,
# and a shell's for Ctrl-C.
EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}
# A closed terminal; and what Slurm is asked to send before a time limit.
HANGUP = getattr(signal, 'SIGHUP', None)  # not on Windows
WARNING = getattr(signal, 'SIGUSR1', None)
EXIT_STATUS.update((s, 75) for s in (HANGUP, WARNING) if s is not None)


class TrainingStopped(SystemExit):
    """Training that was stopped by a signal.

    Args:
        status (int): Exit status of the process.
    """


class StopSignals:
    """Records SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C.

    A second Ctrl-C stops at once. SIGHUP stays ignored where it is, as under
    ``nohup``.
    """

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def listening(self):
        """Handle the signals until training has ended or failed.

        The handlers stay after ``TrainingStopped``: a repeated signal of a
        launcher must not change the exit status.
        """
        self.received = 0
        # Python handles signals in the main thread.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ignored = (HANGUP is not None
                   and signal.getsignal(HANGUP) is signal.SIG_IGN)
        before = {s: signal.signal(s, self._note) for s in EXIT_STATUS
                  if s != HANGUP or not ignored}
        try:
            yield
        except TrainingStopped:
            raise
        except BaseException:
            self._restore(before)
            raise
        self._restore(before)

    @staticmethod
    def _restore(before) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                raise KeyboardInterrupt
            # Not to the log, which may be writing at the moment.
            os.write(2, b'\nStopping after this step; Ctrl-C again stops at '
                     b'once.\n')
        self.received = max(self.received, number)


def shield_workers(loader: DataLoader) -> None:
    """Make a loader's workers end with the main process, not before it.

    A terminal and Slurm send signals to all processes, but the main process
    needs its workers to finish the step.

    Args:
        loader (DataLoader): The data loader, modified in place before its
            workers start.
    """
    inner = loader.worker_init_fn
    if loader.num_workers > 0 and getattr(inner, 'func', None) is not _start:
        loader.worker_init_fn = partial(_start, inner)


def _start(inner: Optional[Callable], worker_id: int) -> None:
    for number in EXIT_STATUS.keys() - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS and Windows
        # Blocked here and so in all threads that come: one waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(
            target=_heed, args=(os.getppid(), ), daemon=True).start()
    if inner is not None:
        inner(worker_id)


def _heed(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
