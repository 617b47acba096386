"""Recorded traces, and how far something is from one."""
import json
from typing import Any, Callable, Dict, NamedTuple

import torch
from torch import Tensor

from ..checkpoints import CheckpointError, read_checkpoint


class Row(NamedTuple):
    """One recorded value and how far ours is from it."""

    name: str
    error: float


class Trace(NamedTuple):
    """A recorded trace, its tensors by key."""

    meta: Dict[str, Any]
    tensors: Dict[str, Tensor]

    def under(self, prefix: str) -> Dict[str, Tensor]:
        """Give the tensors whose key starts with a prefix, without it."""
        return {
            k[len(prefix):]: v
            for k, v in self.tensors.items() if k.startswith(prefix)
        }

    def step(self, number: int, key: str) -> Tensor:
        """Give a recorded tensor of a step."""
        return self.tensors[f'step{number}.{key}']


def read_trace(path: str) -> Trace:
    """Read a trace.

    Raises:
        CheckpointError: If the file is not a trace.
    """
    tensors, metadata = read_checkpoint(path)
    try:
        return Trace(dict(json.loads(metadata['meta'])), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no JSON under the metadata key "
                              "'meta'") from error


def relative_error(ours: Tensor, recorded: Tensor) -> float:
    """Largest error over the recorded tensor's largest magnitude."""
    ours, recorded = ours.detach().double(), recorded.double()
    if ours.shape != recorded.shape:
        return float('inf')
    error = (ours - recorded).abs().max().item()
    scale = recorded.abs().max().item() or 1.
    # nan is the worst error, and compares with nothing
    return error / scale if error == error else float('inf')


def keep_output(seen: Dict[str, Tensor], name: str) -> Callable[..., None]:
    """Make a forward hook that keeps a module's output, or its first part.

    Args:
        seen (Dict[str, Tensor]): Where it is kept.
        name (str): Under what name.
    """

    def hook(module, args, output) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output

    return hook


def keep_predictions(seen: Dict[str, Tensor], name: str
                     ) -> Callable[..., None]:
    """Make a forward hook that keeps what a decoder predicts of every patch.

    A training step computes only what the losses need of it.

    Args:
        seen (Dict[str, Tensor]): Where it is kept.
        name (str): Under what name.
    """

    def hook(module, args, output) -> None:
        with torch.no_grad():
            seen[name] = module.forward(*args, of='all')

    return hook
