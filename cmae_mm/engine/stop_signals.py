"""SIGTERM, SIGUSR1, Ctrl-C: wishes that training grants when it is ready."""
import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import Callable, Optional

from torch.utils.data import DataLoader

# Exit statuses: "try again later" of sysexits.h, which a scheduler can requeue
# on, and a shell's for Ctrl-C.
EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}
# What Slurm's users are used to ask for some minutes before a time limit.
WARNING = getattr(signal, 'SIGUSR1', None)  # not on Windows
if WARNING is not None:
    EXIT_STATUS[WARNING] = 75


class TrainingStopped(SystemExit):
    """Training that ended because it was asked to, with an exit status.

    Args:
        status (int): Exit status of the process.
    """


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C, the second of which stops at once."""

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def listening(self):
        """Listen, until training has ended or failed.

        A process that stops because it was asked to goes on listening: a
        launcher that tells it again must not change its exit status.
        """
        self.received = 0
        # Only a main thread can listen.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._note) for s in EXIT_STATUS}
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
            # The log may be what was interrupted.
            os.write(2, b'\nStopping after this step; Ctrl-C again stops at '
                     b'once.\n')
        self.received = max(self.received, number)


def shield_workers(loader: DataLoader) -> None:
    """Make a loader's workers end with the main process, not before it.

    A terminal and Slurm signal all processes, but the main process still
    needs its workers to finish the step.

    Args:
        loader (DataLoader): The data loader, modified in place before its
            workers start.
    """
    inner = loader.worker_init_fn
    if loader.num_workers > 0 and getattr(inner, 'func', None) is not _start:
        loader.worker_init_fn = partial(_start, inner)


def _start(inner: Optional[Callable], worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if WARNING is not None:
        signal.signal(WARNING, signal.SIG_IGN)
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
