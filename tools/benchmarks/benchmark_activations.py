#!/usr/bin/env python
"""What a forward pass keeps for the backward pass, on a CPU.

Counts the bytes of all tensors that autograd saves in the loss of one batch,
each piece of memory once and parameters left out, without and with activation
checkpointing. Optimizer state and gradients are no part of it, nor the one
layer whose activations are there while it is computed again.
"""
import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import cmae_mm
from cmae_mm.engine.model_options import checkpoint_activations

ROOT = Path(__file__).resolve().parents[2]


class Saved:
    """Notes what autograd saves; a context manager.

    Args:
        model (nn.Module): Its parameters are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known = {p.untyped_storage().data_ptr()
                       for p in model.parameters()}
        self.bytes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self.bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> 'Saved':
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', nargs='?', type=Path,
                        default=ROOT / 'configs/cmae_vit-b_300e.py')
    parser.add_argument('--batch-size', type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    cmae_mm.register()
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(args.config)
    # Random weights as they come: sizes do not depend on them.
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    size = model.backbone.img_size[0]
    views = [torch.randn(args.batch_size, 3, size, size) for _ in range(2)]
    out: dict[str, Any] = dict(
        config=args.config.name, batch_size=args.batch_size,
        million_parameters={
            name: round(sum(p.numel() for p in part) / 1e6, 1)
            for name, part in (
                ('trained', [p for p in model.parameters()
                             if p.requires_grad]),
                ('target', list(model.target.parameters())))})
    for name in ('kept', 'kept_with_checkpointing'):
        if name != 'kept':
            checkpoint_activations(model, True)
        with Saved(model) as saved:
            losses = model.loss(views)
        out[f'{name}_mb_per_image'] = round(
            sum(saved.bytes.values()) / args.batch_size / 2**20, 1)
        del losses
    print(json.dumps(out))


if __name__ == '__main__':
    main()
