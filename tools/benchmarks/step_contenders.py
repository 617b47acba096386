"""The two training steps that ``benchmark_step.py`` measures."""
import copy
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from step_baseline import ComposedCMAE
from step_timing import Site
from torch import Tensor, nn

from cmae_mm.engine.model_options import compile_parts
from cmae_mm.engine.training_step import (TrainingStep, build_training_step,
                                          fake_batch)
from cmae_mm.models import CMAEViT, augmentation


class Step(TrainingStep):
    """A training step, and what its parts are.

    Args:
        model (nn.Module): The model, on its device.
        wrapper (OptimWrapper): Its optimizer wrapper.
        batch (dict): What it trains on, again and again.
        sites (list[tuple]): Its parts, see ``Breakdown``.
    """

    def __init__(self, model: nn.Module, wrapper: Any, batch: dict,
                 sites: list[Site]) -> None:
        super().__init__(model, wrapper, batch)
        self.sites = sites + [
            (wrapper, 'backward', 'backward'),
            (wrapper, 'step', 'optimizer')]


def narrow(cfg: Config) -> None:
    """Make widths and images small, and keep the layers, in place.

    Views are made as on a GPU, all at once.
    """
    encoder, neck = cfg.model.backbone, cfg.model.neck
    if encoder.type != 'CMAEViT':
        raise SystemExit(f'--host is for CMAEViT, not for {encoder.type}')
    arch = encoder.arch if isinstance(encoder.arch, dict) else (
        CMAEViT.arch_zoo[encoder.arch])
    width = 4 * arch['num_heads']
    encoder.arch = dict(
        arch, embed_dims=width, feedforward_channels=4 * width)
    encoder.img_size = 4 * encoder.get('patch_size', 16)
    for name in ('pixel_decoder', 'feature_decoder'):
        if name in neck:
            neck[name].update(decoder_embed_dim=64, decoder_num_heads=16)
    cfg.data_preprocessor.update(
        size=encoder.img_size, canvas_size=encoder.img_size +
        cfg.data_preprocessor.get('max_shift', 32))
    augmentation.is_batched = lambda images: True


def build_ours(cfg: Config, batch_size: int, device: torch.device,
               dtype: str, compiled: str | None) -> Step:
    """Build this project's model and optimizer, as a training does."""
    settings = dict(cfg.optim_wrapper, dtype=dtype)
    if dtype == 'float16' and device.type == 'cpu':
        raise SystemExit('float16 is for GPUs; take bfloat16 on a CPU')
    step = build_training_step(
        cfg, device, settings, cfg.get('activation_checkpointing'))
    if device.type == 'cpu' and dtype == 'bfloat16':  # trains in float32
        step.wrapper.autocasts, step.wrapper.cast_dtype = True, torch.bfloat16
    model = step.model
    if compiled:
        compile_parts(
            model, **({} if compiled == 'default' else dict(mode=compiled)))
    neck, head = model.neck, model.head
    sites: list[Site | None] = [
        (model.data_preprocessor, 'forward', 'preprocessor'),
        (model.backbone, 'forward', 'online encoder'),
        (neck.pixel_decoder, 'forward', 'pixel decoder'),
        neck.feature_decoder and (
            neck.feature_decoder, 'forward', 'feature decoder'),
        neck.projector and (neck.projector, 'forward', 'heads'),
        (head, 'loss', 'heads'),
        model.target and (model.target, 'forward', 'target'),
        model.target and (model.target, 'update', 'EMA'),
    ]
    if dist.is_initialized():
        # Gradients are averaged over ranks, as a training's are.
        model = MMDistributedDataParallel(model, broadcast_buffers=False)
    return Step(model, step.wrapper, fake_batch(cfg, batch_size, device),
                [site for site in sites if site])


def build_baseline(cfg: Config, ours: Step, device: torch.device) -> Step:
    """Build the composition of mmpretrain's parts, on views of the same."""
    settings = cfg.data_preprocessor
    model = ComposedCMAE(ours.model, cfg.model, dict(
        type='SelfSupDataPreprocessor',
        **{k: settings[k] for k in ('mean', 'std', 'to_rgb')
           if k in settings}))
    model.init_weights()
    model = model.to(device).train()
    optim_wrapper = {
        k: v for k, v in cfg.optim_wrapper.items()
        if k in ('optimizer', 'paramwise_cfg')
    }
    if device.type == 'cuda':
        optim_wrapper.update(type='AmpOptimWrapper', dtype='float16')
    wrapper = build_optim_wrapper(model, copy.deepcopy(optim_wrapper))
    # Finished views: the workers of this recipe make them, on the CPU.
    views = ours.batch['inputs']
    if isinstance(views, Tensor):
        size = settings.size
        views = [views[:, :, :size, :size], views[:, :, -size:, -size:]]
    sites: list[Site] = [
        (model.data_preprocessor, 'forward', 'preprocessor'),
        (model.backbone, 'forward', 'online encoder'),
        (model.pixel_decoder, 'forward', 'pixel decoder'),
        (model.reconstruction, 'loss', 'heads'),
    ]
    if model.target is not None:
        encoder, projector = model.target.module
        sites += [
            (encoder, 'forward', 'target'),
            (projector, 'forward', 'target'),
            (model.feature_decoder, 'forward', 'feature decoder'),
            (model.projector, 'forward', 'heads'),
            (model.contrast, 'loss', 'heads'),
            (model.target, 'update_parameters', 'EMA')]
    return Step(model, wrapper, dict(inputs=views, data_samples=None), sites)
