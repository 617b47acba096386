"""Clocks and arithmetic of a training step."""
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Operators that allocate or note, and launch nothing; views are known.
_NO_KERNEL = ('empty', 'new_empty', '_unsafe_view', 'detach', '_record')
# Calls at which the host waits for a device.
_WAITS = ('tolist', 'cpu', 'numpy', 'item', '__bool__', '__float__', '__int__',
          'nonzero', 'masked_select', 'equal')
# An object, the name of one of its methods, and the part that it is.
Site = tuple[Any, str, str]


class Clock:
    """Measures on a device's own time: events on a GPU, seconds on a CPU.

    Args:
        device (torch.device): Where the work is done.
        of_process (bool): Whether, on a CPU, seconds are those that the
            process has had of it, divided by the number of its threads,
            instead of those that have passed. Defaults to False.
    """

    def __init__(self, device: torch.device, of_process: bool = False) -> None:
        self.on_gpu = device.type == 'cuda'
        self.of_process = of_process

    def now(self) -> Any:
        """Give a moment, for :meth:`between`."""
        if not self.on_gpu:
            if self.of_process:
                return time.process_time() / torch.get_num_threads()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Give the seconds between two moments."""
        if not self.on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def time(self, work: Callable[[], Any], times: int = 1) -> float:
        """Give the seconds of a piece of work that is done several times."""
        start = self.now()
        for _ in range(times):
            work()
        return self.between(start, self.now()) / times


class PeakMemory:
    """Largest memory added by a block of code, in MiB.

    On a GPU the memory allocated by torch, on a CPU the resident set of the
    process (Linux).

    Args:
        device (torch.device): The device of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> 'PeakMemory':
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
            self._before = _read_status('VmRSS')
        return self

    def __exit__(self, *exception: Any) -> None:
        peak = (torch.cuda.max_memory_allocated(self.device)
                if self.device.type == 'cuda' else _read_status('VmHWM'))
        self.mib = (peak - self._before) / 2**20


def _read_status(name: str) -> int:
    """Read a size of this process in bytes, 'VmRSS' or 'VmHWM'."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(rf'^{name}:\s*(\d+)', status, re.M)[1])


class Breakdown:
    """Time of the parts of a step, each without the parts inside of it.

    Args:
        clock (Clock): What measures.
        sites (Sequence[tuple]): What to measure: an object, the name of one
            of its methods, and the part's name.
    """

    def __init__(self, clock: Clock, sites: Sequence[Site]) -> None:
        self.clock = clock
        self.sites = sites
        self._spans: list[tuple[str, int, Any, Any]] = []
        self._depth = 0

    @contextmanager
    def _watching(self) -> Iterator[None]:
        # What is compiled is an attribute of the object already.
        before = [vars(owner).get(name) for owner, name, _ in self.sites]
        for owner, name, part in self.sites:
            setattr(owner, name, self._timed(getattr(owner, name), part))
        try:
            yield
        finally:
            for (owner, name, _), own in zip(self.sites, before):
                if own is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, own)

    def _timed(self, method: Callable, part: str) -> Callable:

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = self.clock.now()
            result = method(*args, **kwargs)
            self._spans.append((part, self._depth, start, self.clock.now()))
            self._depth -= 1
            return result

        return timed

    def of(self, step: Callable[[], Any]) -> dict[str, float]:
        """Give the seconds of each part of one step; 'other' is the rest."""
        self._spans = []
        with self._watching():
            start = self.clock.now()
            step()
            whole = self.clock.between(start, self.clock.now())
        seconds = {part: 0. for _, _, part in self.sites}
        inside: dict[int, float] = {}
        # A span comes after those inside of it.
        for part, depth, start, end in self._spans:
            spent = self.clock.between(start, end)
            seconds[part] += spent - inside.pop(depth + 1, 0.)
            inside[depth] = inside.get(depth, 0.) + spent
        seconds['other'] = whole - sum(seconds.values())
        return seconds


class _Launches(TorchDispatchMode):
    """A clock that counts operators instead of seconds."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not func.is_view and not name.startswith(_NO_KERNEL)
        return func(*args, **(kwargs or {}))

    def now(self) -> int:
        return self.count

    def between(self, start: int, end: int) -> int:
        return end - start


class _Waits(TorchFunctionMode):
    """Notes calls that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        if getattr(func, '__name__', '') in _WAITS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def count_launches(step: Callable[[], Any], sites: Sequence[Site]
                   ) -> tuple[dict[str, int], list[str]]:
    """Count the operators of a step that launch kernels on a GPU.

    All but views and allocations, in both passes, each once, whether it works
    on one tensor or on a list, and random draws, which stay on the CPU.

    Returns:
        tuple[dict[str, int], list[str]]: Number of operators of each part,
        and the calls at which the host waits for a device.
    """
    with _Waits() as waits, _Launches() as launches:
        parts = Breakdown(launches, sites).of(step)
    return {part: int(n) for part, n in parts.items()}, waits.found


def count_flop(step: Callable[[], Any]) -> int:
    """Count the FLOP of a step, multiplications and additions apart.

    Attention is counted as the two matrix products that it is, which not every
    fused kernel tells the counter.
    """
    switches = ('flash', 'mem_efficient', 'cudnn')
    before = {}
    for name in switches:
        on = getattr(torch.backends.cuda, f'{name}_sdp_enabled', None)
        if on is not None:
            before[name] = on()
            getattr(torch.backends.cuda, f'enable_{name}_sdp')(False)
    try:
        with FlopCounterMode(display=False, custom_mapping={
                torch.ops.aten.convolution_backward: _count_backward
        }) as counter:
            step()
    finally:
        for name, on in before.items():
            getattr(torch.backends.cuda, f'enable_{name}_sdp')(on)
    return counter.get_total_flops()


def _count_backward(grad_out_shape: Any, x_shape: Any, w_shape: Any,
                    *others: Any, **kwargs: Any) -> int:
    """Count the FLOP of a convolution's backward pass.

    As often as asked for as many as forwards: the counter's own takes the
    weight gradient of a depthwise convolution for that of a dense one.
    """
    transposed, output_mask = others[4], others[7]
    places = math.prod((x_shape if transposed else grad_out_shape)[2:])
    forward = 2 * x_shape[0] * places * math.prod(w_shape)
    return forward * sum(output_mask[:2])


def matmul_peak(clock: Clock, device: torch.device,
                dtype: torch.dtype) -> float:
    """Measure the FLOP/s of the fastest of some large matrix products."""
    sizes = (4096, 8192) if device.type == 'cuda' else (1024, 2048)
    best = 0.
    for size in sizes:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(a)

        def multiply(a=a, b=b, out=out) -> None:
            torch.mm(a, b, out=out)

        repeats = 20 if device.type == 'cuda' else 1
        clock.time(multiply, 3)
        for _ in range(5):
            best = max(best, 2 * size**3 / clock.time(multiply, repeats))
    return best


def memory_bandwidth(clock: Clock, device: torch.device) -> float:
    """Measure the bytes/s of copying, what is read and written together."""
    source = torch.ones(1 << (28 if device.type == 'cuda' else 26),
                        device=device)
    copy = torch.empty_like(source)
    clock.time(lambda: copy.copy_(source), 2)
    return max(
        2 * source.nbytes / clock.time(lambda: copy.copy_(source))
        for _ in range(5))
