"""A training step by itself, without data, loops and hooks: for measuring."""
from typing import Any, Dict, Optional

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .activation_checkpointing import checkpoint_activations
from .hooks import TargetUpdateHook

_NO_END = 1 << 30


def preprocessor_of(cfg: Config) -> dict:
    """Give the settings of a config's data preprocessor."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor


def fake_batch(cfg: Config, batch_size: int, device: torch.device) -> dict:
    """Make a batch of random images of the sizes that a config trains on.

    Args:
        cfg (Config): The config of a pre-training.
        batch_size (int): Number of images.
        device (torch.device): Where it is wanted.

    Returns:
        dict: ``inputs``, canvases or two views, and ``data_samples``.
    """
    settings = preprocessor_of(cfg)
    size = cfg.model.backbone.get('img_size', 224)
    channels = len(settings.get('mean') or (0, 0, 0))
    dtype = settings.get('dtype', 'uint8')

    def images(side: int) -> Tensor:
        # Smooth, as photographs are, so that colours are changed as there.
        coarse = torch.rand(batch_size, channels, 8, 8)
        fine = nn.functional.interpolate(coarse, side, mode='bicubic')
        scaled = (fine.clamp_(0, 1) * 255).numpy().astype(dtype)
        return torch.from_numpy(scaled).to(device)

    if settings['type'].endswith('TwoViewDataPreprocessor'):
        return dict(inputs=images(settings['size'] + settings.get(
            'max_shift', 32)), data_samples=None)
    return dict(inputs=[images(size), images(size)], data_samples=None)


class TrainingStep:
    """A model, its optimizer wrapper and a batch.

    Args:
        model (nn.Module): The model, on its device.
        wrapper (OptimWrapper): Its optimizer wrapper.
        batch (dict, optional): What it trains on, again and again. Defaults
            to None, which must be set before it is called.
    """

    def __init__(self,
                 model: nn.Module,
                 wrapper: Any,
                 batch: Optional[dict] = None) -> None:
        self.model, self.wrapper, self.batch = model, wrapper, batch
        wrapper.initialize_count_status(model, 0, _NO_END)

    def __call__(self) -> Dict[str, Tensor]:
        """Train on the batch once: everything up to the moved target."""
        return self.model.train_step(self.batch, self.wrapper)


def build_training_step(
        cfg: Config,
        device: torch.device,
        optim_wrapper: Optional[dict] = None,
        activation_checkpointing: Any = None) -> TrainingStep:
    """Build a config's model and optimizer, as a training does.

    Args:
        cfg (Config): The config of a pre-training.
        device (torch.device): Where it trains.
        optim_wrapper (dict, optional): Its optimizer wrapper. Defaults to
            None, the config's.
        activation_checkpointing (bool | str | List[str], optional): See
            :func:`checkpoint_activations`. Defaults to None, off.

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
        TargetUpdateHook().attach(model, wrapper.optimizer, _NO_END)
    if activation_checkpointing:
        checkpoint_activations(model, activation_checkpointing)
    return TrainingStep(model, wrapper)
