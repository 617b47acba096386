"""Work on many images in several processes."""
import signal
from typing import Any, Callable, Iterator, Optional, Sequence

from torch.utils.data import DataLoader, Dataset

from ..dependencies import cpu_count

# Fewer images than these are not worth the start of a process.
_FEW = 64


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers.

    Args:
        worker (int): Number of the worker, for a loader's ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Calls(Dataset):
    """The results of a function, by the position of its argument."""

    def __init__(self, function: Callable[[int], Any],
                 numbers: Sequence[int]) -> None:
        self.function, self.numbers = function, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.function(int(self.numbers[index]))
        # A loader's worker would hide the error in a long text.
        except (OSError, ValueError, RuntimeError) as error:
            return error


def map_numbers(function: Callable[[int], Any],
                numbers: Sequence[int],
                num_workers: Optional[int] = None) -> Iterator[Any]:
    """Call a function with numbers, in several processes.

    Args:
        function (Callable): A function that can be pickled.
        numbers (Sequence[int]): Its arguments.
        num_workers (int, optional): Number of processes; 0 for this one.
            Defaults to one for each core, at most 8.

    Yields:
        Any: The results in the order of the numbers.

    Raises:
        Exception: The error of a call.
    """
    if num_workers is None:
        num_workers = min(8, cpu_count())
    loader = DataLoader(
        _Calls(function, numbers), 8, collate_fn=list,
        num_workers=num_workers if len(numbers) > _FEW else 0,
        worker_init_fn=ignore_interrupts)
    for batch in loader:
        for result in batch:
            if isinstance(result, Exception):
                raise result
            yield result
