"""Pre-trained models that are evaluated, and no longer trained."""
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from ..evaluation import load_frozen
from .device import unwrapped_model


def build_frozen_model(cfg: Config,
                       checkpoint: str,
                       encoder: str = 'online') -> nn.Module:
    """Build a pre-training config's model with a checkpoint's encoder.

    Args:
        cfg (Config): The config of a runner, which seeds and starts the
            processes as for training.
        checkpoint (str): A file that
            :func:`~cmae_mm.checkpoints.load_encoder_into` takes, or 'random'
            for random initialisation by the config's seed.
        encoder (str): 'online' or 'target'. Defaults to 'online'.

    Returns:
        CMAE: The model in evaluation mode, on the device that there is,
        without distributed wrapper.

    Raises:
        ValueError: If the config is not one of pre-training, or its model has
            no such encoder.
        CheckpointError: If the checkpoint cannot be used.
    """
    if cfg.model.get('type') != 'CMAE':
        raise ValueError(
            'the config must be one of pre-training, with a model of type '
            f"'CMAE', but its model is of type {cfg.model.get('type')!r}")
    return load_frozen(
        unwrapped_model(Runner.from_cfg(cfg)), checkpoint, encoder)
