"""The two training steps that ``benchmark_step.py`` measures."""
import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from step_baseline import ComposedCMAE
from step_timing import Site
from torch import Tensor, nn

from cmae_mm.engine.hooks.step_hooks import TargetUpdateHook
from cmae_mm.engine.model_options import checkpoint_activations, compile_parts
from cmae_mm.image_size import to_pair
from cmae_mm.models import CMAEViT
from cmae_mm.models.data_preprocessors import augmentation

NO_END = 1 << 30


class TrainingStep:
    """A model, its optimizer wrapper and a batch.

    Args:
        model (nn.Module): The model, on its device.
        wrapper (OptimWrapper): Its optimizer wrapper.
        batch (dict, optional): The batch of each step. Defaults to None; it
            must be set before the first call.
    """

    def __init__(self,
                 model: nn.Module,
                 wrapper: Any,
                 batch: dict | None = None) -> None:
        self.model, self.wrapper, self.batch = model, wrapper, batch
        wrapper.initialize_count_status(model, 0, NO_END)

    def __call__(self) -> dict[str, Tensor]:
        """Train on the batch once, including the update of the target."""
        return self.model.train_step(self.batch, self.wrapper)


def preprocessor_of(cfg: Config) -> dict:
    """Return the settings of a config's data preprocessor."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor


def fake_batch(cfg: Config, batch_size: int, device: torch.device) -> dict:
    """Create a batch of random images with the sizes of a config.

    Args:
        cfg (Config): The config of a pre-training.
        batch_size (int): Number of images.
        device (torch.device): The device of the images.

    Returns:
        dict: ``inputs``, canvases or two views, and ``data_samples``.
    """
    settings = preprocessor_of(cfg)
    size = to_pair(cfg.model.backbone.get('img_size', 224))
    channels = len(settings.get('mean') or (0, 0, 0))
    dtype = settings.get('dtype', 'uint8')

    def images(size: Sequence[int]) -> Tensor:
        # Smooth like photographs, which affects the time of augmentations.
        coarse = torch.rand(batch_size, channels, 8, 8)
        fine = nn.functional.interpolate(coarse, size, mode='bicubic')
        scaled = (fine.clamp_(0, 1) * 255).numpy().astype(dtype)
        return torch.from_numpy(scaled).to(device)

    if settings['type'].endswith('TwoViewDataPreprocessor'):
        shift = settings.get('max_shift', 32)
        return dict(inputs=images([
            side + shift for side in to_pair(settings['size'])]),
            data_samples=None)
    return dict(inputs=[images(size), images(size)], data_samples=None)


def build_training_step(
        cfg: Config,
        device: torch.device,
        optim_wrapper: dict | None = None,
        activation_checkpointing: Any = None) -> TrainingStep:
    """Build a config's model and optimizer, as for training.

    Args:
        cfg (Config): The config of a pre-training.
        device (torch.device): The device of the model.
        optim_wrapper (dict, optional): Its optimizer wrapper. Defaults to
            None, the config's.
        activation_checkpointing (bool | str | list[str], optional): See
            ``checkpoint_activations``. Defaults to None, off.

    Returns:
        TrainingStep: Without a batch.
    """
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=preprocessor_of(cfg)))
    model.init_weights()
    model = revert_sync_batchnorm(model).to(device).train()
    wrapper = build_optim_wrapper(
        model, cfg.optim_wrapper if optim_wrapper is None else optim_wrapper)
    if model.target is not None and not model.target.fixed:
        TargetUpdateHook().attach(model, wrapper.optimizer, NO_END)
    if activation_checkpointing:
        checkpoint_activations(model, activation_checkpointing)
    return TrainingStep(model, wrapper)


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
    augmentation.at_once = lambda images: True


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
