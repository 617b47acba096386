#!/usr/bin/env python
"""Run torchrun so that ranks can save before they end; see dist_train.sh.

On SIGTERM torchrun kills its ranks 30 seconds later, and ends with status 1
whatever theirs is. Here the ranks are told, torchrun waits until they have
ended by themselves, and their common status is given on.
"""
import os
import signal
import socket
import sys
from typing import Optional

from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

# See cmae_mm/engine/stop_signals.py, whose import would take 9 seconds.
STOPPED = (75, 130)
ranks: Optional[PContext] = None
told = 0


def tell_ranks(number: int, frame) -> None:
    """Hand a signal on to the ranks that have not got it yet."""
    global told
    told = number
    for pids in (ranks.pids().values() if ranks is not None else ()):
        for pid in (pids if isinstance(pids, (list, tuple)) else [pids]):
            try:
                # A terminal signals all of its foreground group.
                reached = os.getpgid(pid) == os.getpgrp()
                if number != signal.SIGINT or not reached:
                    os.kill(pid, number)
            except ProcessLookupError:
                pass
    if ranks is None:
        sys.exit(128 + number)


def start(context: PContext, original=PContext.start) -> None:
    """Start the ranks, and take signals over from torchrun."""
    global ranks
    original(context)
    ranks = context
    listen()


def listen() -> None:
    """Listen to what schedulers and people stop programs with."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell_ranks)


def choose_port(argument: str) -> str:
    """Replace ``--master_port=free`` by a port that is free here."""
    if argument != '--master_port=free':
        return argument
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return f'--master_port={probe.getsockname()[1]}'


if __name__ == '__main__':
    sys.argv = [choose_port(argument) for argument in sys.argv]
    PContext.start = start
    listen()
    try:
        main()
    except ChildFailedError as error:
        statuses = {f.exitcode for f in error.failures.values()}
        # A rank that others waited for no longer may end by a signal.
        stopped = statuses.intersection(STOPPED)
        if not (told or stopped) or statuses - stopped - {-signal.SIGTERM}:
            rank, failure = error.get_first_failure()
            killed = (f' (signal {-failure.exitcode})'
                      if failure.exitcode < 0 else '')
            sys.exit(f'dist_run.py: rank {rank} ended with status '
                     f'{failure.exitcode}{killed}; what it said stands above')
        sys.exit(max(stopped, default=128 + told))
