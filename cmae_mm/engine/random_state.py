"""Random generators that are put back to where they were."""
import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


@contextmanager
def keep_generators() -> Iterator[None]:
    """Put the generators of ``random``, numpy and torch back afterwards.

    Those of all GPUs that are in use, too.
    """
    states = random.getstate(), np.random.get_state()
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if in_use else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
