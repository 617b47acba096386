#!/usr/bin/env python
"""Run torchrun so that ranks can save before they end; see dist_train.sh.

On SIGTERM torchrun kills its ranks 30 seconds later, and ends with status 1
whatever theirs is. Here the ranks are told, torchrun waits until they have
ended by themselves, and their common status is given on.
"""
import os
import re
import signal
import socket
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

# See cmae_mm/engine/hooks/step_hooks.py, whose import takes 9 seconds.
STOPPED = (75, 130)
ranks: PContext | None = None
told = 0
under_nohup = (hasattr(signal, 'SIGHUP')
               and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
if under_nohup:  # torchrun would handle it, and its ranks would not ignore it
    os.environ['TORCHELASTIC_SIGNALS_TO_HANDLE'] = 'SIGTERM,SIGINT,SIGQUIT'


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
    """Handle the signals that stop training, see step_hooks.py."""
    for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP'):
        signal.signal(
            getattr(signal, name), signal.SIG_IGN
            if name == 'SIGHUP' and under_nohup else tell_ranks)


def count_kills() -> int:
    """Count what the kernel has killed since memory ran out."""
    try:
        group = Path('/proc/self/cgroup').read_text().rpartition('0::')[2]
        events = Path('/sys/fs/cgroup', group.strip().strip('/'),
                      'memory.events')
        # of all of the machine, where it is not known of the group
        for source in (events, Path('/proc/vmstat')):
            if source.exists():
                found = re.search(
                    r'^oom_kill (\d+)$', source.read_text(), re.MULTILINE)
                if found:
                    return int(found[1])
    except OSError:
        pass
    return 0


def describe(error: ChildFailedError, kills_before: int) -> str:
    """Say which rank ended first, and how.

    Args:
        error (ChildFailedError): torchrun's.
        kills_before (int): :func:`count_kills` when the ranks were started.

    Returns:
        str: A sentence.
    """
    rank, failure = error.get_first_failure()
    status = failure.exitcode
    who = f'rank {rank} (process {failure.pid})'
    if status != -signal.SIGKILL:
        how = f' (signal {-status})' if status < 0 else ''
        return f'{who} ended with status {status}{how}; see its output above'
    if count_kills() > kills_before:
        return (f'{who} was killed by the kernel because memory ran out: '
                'lower train_dataloader.batch_size or num_workers, or run '
                'fewer ranks on this machine')
    return (f'{who} was killed (signal 9), by a user or because memory ran '
            "out; see the kernel's log (dmesg)")


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
    kills_before = count_kills()
    try:
        main()
    except ChildFailedError as error:
        statuses = {f.exitcode for f in error.failures.values()}
        # A rank that others waited for no longer may end by a signal.
        stopped = statuses.intersection(STOPPED)
        if not (told or stopped) or statuses - stopped - {-signal.SIGTERM}:
            sys.exit(f'dist_run.py: {describe(error, kills_before)}')
        sys.exit(max(stopped, default=128 + told))
