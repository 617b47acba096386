"""Recorded traces, and the error of a value relative to one."""
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmae_mm.checkpoints import CheckpointError, read_checkpoint


class Row(NamedTuple):
    """A recorded value and our error relative to it."""

    name: str
    error: float


class Trace(NamedTuple):
    """A recorded trace, its tensors by key."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, by the rest of their key."""
        return {
            k[len(prefix):]: v
            for k, v in self.tensors.items() if k.startswith(prefix)
        }

    def step(self, number: int, key: str) -> Tensor:
        """Return a recorded tensor of a step."""
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
    # NaN counts as the worst error; no comparison with it is true.
    return error / scale if error == error else float('inf')


def keep_output(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    """Make a forward hook that stores a module's (first) output.

    Args:
        seen (dict[str, Tensor]): The dict to store it in.
        name (str): Its key.
    """

    def hook(module, args, output) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output

    return hook


def keep_predictions(seen: dict[str, Tensor], name: str
                     ) -> Callable[..., None]:
    """Make a forward hook that stores a decoder's prediction of all patches.

    A training step only computes the patches that the losses need.

    Args:
        seen (dict[str, Tensor]): The dict to store it in.
        name (str): Its key.
    """

    def hook(module, args, output) -> None:
        with torch.no_grad():
            seen[name] = module.forward(*args, of='all')

    return hook
