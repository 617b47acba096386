"""Skipping steps whose loss or gradients are not finite."""
import logging
from collections import defaultdict
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from ...models.utils import local_part

_NAMES_SHOWN = 8


class NonFiniteError(RuntimeError):
    """Training that was stopped because its steps are not finite."""


def grad_norm(grads: Sequence[Tensor], norm_type: float = 2.) -> Tensor:
    """Compute the norm over all gradients, in few kernels.

    Args:
        grads (Sequence[Tensor]): Gradients, on one device.
        norm_type (float): p of the p-norm. Defaults to 2.

    Returns:
        Tensor: A float32 scalar. If gradients are sharded, it is the norm
        over all shards, and all ranks must call this.
    """
    parts = [local_part(g) for g in grads]
    # A shard is empty if a parameter has fewer rows than there are ranks.
    norms = torch._foreach_norm([p for p in parts if p.numel()], norm_type)
    norm = torch.linalg.vector_norm(torch.stack(
        [n.float() for n in norms] or [parts[0].new_zeros(())]), norm_type)
    if parts[0] is grads[0]:
        return norm
    if norm_type == float('inf'):
        dist.all_reduce(norm, op=dist.ReduceOp.MAX)
        return norm
    powers = norm.pow(norm_type)
    dist.all_reduce(powers)
    return powers.pow(1 / norm_type)


def part_norms(model: nn.Module) -> Dict[str, Tensor]:
    """Compute the gradient norm of each part of a model.

    Args:
        model (nn.Module): The model, with or without a distributed wrapper.

    Returns:
        Dict[str, Tensor]: Norms by name of the part, for instance 'backbone'
        or, within necks and heads, 'neck.pixel_decoder'.
    """
    grads = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            modules = name.removeprefix('module.').split('.')
            depth = 2 if modules[0] in ('neck', 'head') and (
                len(modules) > 2) else 1
            grads['.'.join(modules[:depth])].append(parameter.grad)
    return {part: grad_norm(g) for part, g in grads.items()}


class StepGuard:
    """Undoes, counts and reports steps that are not finite.

    Args:
        max_skipped (int): Number of skipped steps in a row that stops the
            training.

    Raises:
        ValueError: If it is below 1.
    """

    def __init__(self, max_skipped: int) -> None:
        if max_skipped < 1:
            raise ValueError('max_skipped must be 1 or more steps in a row, '
                             f'but got {max_skipped}')
        self.max_skipped = max_skipped
        self.in_a_row = 0
        self.model: Optional[nn.Module] = None
        self._buffers: List[Tensor] = []
        # By dtype, each copied by one kernel: buffers, and their copies.
        self._kept: Dict[torch.dtype, Tuple[List[Tensor], List[Tensor]]] = {}
        self.samples: List[Any] = []  # of the step, set by SkippedStepHook

    @torch.compiler.disable
    @torch.no_grad()
    def keep_buffers(self, model: nn.Module) -> None:
        """Copy a model's buffers, such as BatchNorm statistics.

        Args:
            model (nn.Module): The model, as it is before a step.
        """
        self.model = model
        buffers = list(model.buffers())
        if [id(b) for b in buffers] != [id(b) for b in self._buffers]:
            self._buffers, self._kept = buffers, {}
            for buffer in buffers:
                now, kept = self._kept.setdefault(buffer.dtype, ([], []))
                now.append(buffer)
                kept.append(buffer.clone())
            return
        for now, kept in self._kept.values():
            torch._foreach_copy_(kept, now)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Restore the buffers to their values before the step."""
        for now, kept in self._kept.values():
            torch._foreach_copy_(now, kept)

    def accept(self) -> None:
        """Count an optimizer step."""
        self.in_a_row = 0

    def reject(self, optimizer: torch.optim.Optimizer, loss: float,
               norm: float, hub: MessageHub, scaled: bool) -> None:
        """Count a skipped step, warn, and stop after too many.

        Args:
            optimizer (torch.optim.Optimizer): The optimizer, with the step's
                gradients.
            loss (float): Loss of the step.
            norm (float): Norm over all gradients.
            hub (MessageHub): The message hub, which stores the count.
            scaled (bool): Whether the step is skipped because the loss scale
                of float16 is being lowered.

        Raises:
            NonFiniteError: After ``max_skipped`` of them in a row.
        """
        self.in_a_row += 1
        name = 'scaler_steps' if scaled else 'skipped_steps'
        key = f'train/{name}'
        scalars = hub.log_scalars
        before = scalars[key].current() if key in scalars else 0
        hub.update_scalar(key, before + 1)
        what = f'loss {loss:g}, gradient norm {norm:g}'
        step = hub.get_info('iter', -1) + 1
        if self.in_a_row >= self.max_skipped:
            raise NonFiniteError(self._report(optimizer, step, what))
        if scaled:
            return
        print_log(
            f'Skipped the step of iteration {step}, which is not finite '
            f'({what}): parameters and target are unchanged. '
            f'Images: {self._images()}.',
            logger='current',
            level=logging.WARNING)

    def _report(self, optimizer: torch.optim.Optimizer, step: int,
                what: str) -> str:
        norms = ', '.join(
            f'{part} {float(norm):.3g}'
            for part, norm in part_norms(self.model or nn.Module()).items())
        rates = [float(g['lr']) for g in optimizer.param_groups]
        return (
            f'Stopped at iteration {step}: {self.in_a_row} steps in a '
            f'row were not finite ({what}). Gradient norms: {norms}. Learning '
            f'rate: {max(rates):.3g}. Images of the last step: '
            f'{self._images()}. No parameter was changed by these steps and '
            'checkpoints are intact. Lower optim_wrapper.optimizer.lr (in a '
            'new run, by --no-resume: a resumed run keeps its own), set '
            'optim_wrapper.clip_grad=dict(max_norm=3.), or check '
            'data_preprocessor.mean and std and these images; '
            f'optim_wrapper.max_skipped={self.max_skipped} sets how many '
            'steps are allowed.')

    def _images(self) -> str:
        paths = [str(s.img_path) for s in self.samples
                 if getattr(s, 'img_path', None) is not None]
        shown = ', '.join(paths[:_NAMES_SHOWN]) or 'unknown'
        more = len(paths) - _NAMES_SHOWN
        return f'{shown} and {more} more' if more > 0 else shown
