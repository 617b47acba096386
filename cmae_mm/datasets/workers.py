"""Processes that read images."""
import signal


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, with which its workers end.

    Args:
        worker (int): Number of the worker, for a loader's ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
