"""Ending a job of which a process hangs, and saying which one."""
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, Callable, Dict, List, Optional

import torch.distributed as dist

# "Service unavailable" of sysexits.h.
HUNG = 69
# Where the main thread of a process stands that waits for others: in torch,
# and in this package where it waits for what it has begun before.
_WAITING = ('/torch/distributed/', '/torch/autograd/', '/torch/nn/parallel/',
            '/hooks/preemption_hook.py', '/auto_amp_optim_wrapper.py')


class Watchdog:
    """Watches that the ranks of a job get on, in a thread on each.

    Each rank tells the others through the process group's store how far it is,
    and where its main thread stands. Where a rank has not got on for the time
    that is allowed, usually since it waits for another, it says which rank is
    behind, and ends the process. What counts is that the rank does anything
    (:meth:`note`), not how long an iteration takes.

    Args:
        timeout (float): Seconds after which a rank that has not got on is
            said to hang.
        end (Callable): What is called with a status at the end. Defaults to
            ``os._exit``, since a thread that hangs lets no other way.
    """

    def __init__(self, timeout: float,
                 end: Callable[[int], None] = os._exit) -> None:
        self.timeout = timeout
        self.end = end
        self.interval = min(max(timeout / 8, 0.05), 10.)
        self._state: Dict[str, Any] = dict(count=0, stage='starting')
        self._since = time.monotonic()
        self._beats = 0
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._main = threading.main_thread().ident

    def start(self) -> None:
        """Start watching; does nothing where there is one process alone."""
        if not dist.is_initialized() or dist.get_world_size() < 2:
            return
        store = dist.distributed_c10d._get_default_store()
        self._store = dist.PrefixStore('cmae_watchdog', store)
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._stop.clear()
        self.note('starting')
        self._thread = threading.Thread(
            target=self._run, name='watchdog', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * self.interval)
            self._thread = None

    def note(self, stage: str, count: Optional[int] = None) -> None:
        """Note that the process gets on.

        Args:
            stage (str): What it does now.
            count (int, optional): How far it is, a number that grows by the
                same on each rank. Defaults to None, no further than before.
        """
        if count is not None:
            self._state['count'] = count
        self._state['stage'] = stage
        self._since = time.monotonic()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.interval):
                self._tell()
                if time.monotonic() - self._since > self.timeout:
                    self._report()
        except Exception as error:
            # The store is gone with the process that holds it.
            if not self._stop.wait(self.timeout):
                self._finish(
                    f'the process that all ranks meet at (on rank 0, or the '
                    f'launcher of the first machine) does not answer: {error}')

    def _tell(self) -> None:
        """Tell the other ranks where this one is."""
        self._beats += 1
        frames = sys._current_frames().get(self._main)
        stack = traceback.extract_stack(frames)
        place = stack[-1]
        waits = any(part in place.filename for part in _WAITING)
        self._store.set(str(self._rank), json.dumps(dict(
            self._state, beats=self._beats, waits=waits,
            host=socket.gethostname(), pid=os.getpid(),
            place=f'{place.filename}:{place.lineno} in {place.name}')))

    def _listen(self) -> List[Optional[Dict[str, Any]]]:
        return [
            json.loads(self._store.get(str(rank)))
            if self._store.check([str(rank)]) else None
            for rank in range(self._ranks)]

    def _report(self) -> None:
        """Find out who hangs, say so, and end."""
        before = self._listen()
        # Two beats of each rank that lives.
        if self._stop.wait(3 * self.interval):
            return
        self._tell()
        now = self._listen()
        if time.monotonic() - self._since <= self.timeout:
            return  # it went on meanwhile
        self._finish(describe(before, now, self.timeout))

    def _finish(self, text: str) -> None:
        print(f'\ncmae train (rank {self._rank}): {text}', file=sys.stderr,
              flush=True)
        self.end(HUNG)


def describe(before: List[Optional[Dict[str, Any]]],
             now: List[Optional[Dict[str, Any]]], timeout: float) -> str:
    """Say which rank hangs.

    Args:
        before (list): What each rank has told, None for nothing.
        now (list): The same a few beats later.
        timeout (float): The seconds that were allowed.

    Returns:
        str: A sentence that names the ranks, and a line on each of these.
    """
    silent = [
        rank for rank, (old, new) in enumerate(zip(before, now))
        if new is None or (old is not None and old['beats'] == new['beats'])]
    if silent:
        lines = [f'rank {rank} does not answer{_where(now[rank])}: its process'
                 ' is stopped or gone, or its machine is' for rank in silent]
    else:
        least = min(told['count'] for told in now)
        behind = [r for r, told in enumerate(now) if told['count'] == least]
        # Those that wait for others are not at fault, unless all do.
        behind = [r for r in behind if not now[r]['waits']] or behind
        lines = [f'rank {rank}{_where(now[rank])} hangs in '
                 f'{now[rank]["stage"]}, at {now[rank]["place"]}'
                 for rank in behind]
    return (f'no rank got on for {timeout:g} s (the timeout of WatchdogHook): '
            + '; '.join(lines) + '. What was saved is intact, and the same '
            'command goes on from there.')


def _where(told: Optional[Dict[str, Any]]) -> str:
    if told is None:
        return ''
    return f' (process {told["pid"]} on {told["host"]})'
