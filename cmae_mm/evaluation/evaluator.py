"""A frozen encoder and labelled images: what every evaluation starts from."""
from typing import Any, Dict

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn

from ..checkpoints.encoder import RANDOM, load_encoder_into
from .data import build_eval_dataset, check_same_classes, eval_dataset_cfgs
from .features import FeatureSet, eval_preprocessor, extract_features


class FrozenFeatures:
    """Extracts features of labelled training and validation images.

    Args:
        model (CMAE): The model; its weights are not touched.
        cfg (Config): Its pre-training config: says where the labelled images
            are, see ``eval_dataset_cfgs``, and how they are normalised.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        pool (str): 'mean' of the patch tokens, or 'cls', the class token.
            Defaults to 'mean'.
        batch_size (int): Of each process. Defaults to 256.
        num_workers (int): Of each process. Defaults to 2.
        dtype (torch.dtype): Features are kept in it. Defaults to float32.

    Raises:
        EvaluationDataError: If images or labels are missing, or training and
            validation classes differ.
    """

    def __init__(self,
                 model: nn.Module,
                 cfg: Config,
                 encoder: str = 'online',
                 pool: str = 'mean',
                 batch_size: int = 256,
                 num_workers: int = 2,
                 dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.datasets = {
            split: build_eval_dataset(dataset)
            for split, dataset in eval_dataset_cfgs(cfg).items()
        }
        check_same_classes(self.datasets['train'], self.datasets['val'])
        self.preprocessor = MODELS.build(eval_preprocessor(cfg))
        self.options: Dict[str, Any] = dict(
            encoder=encoder,
            pool=pool,
            batch_size=batch_size,
            num_workers=num_workers,
            dtype=dtype)

    def extract(self, split: str) -> FeatureSet:
        """Extract features of 'train' or 'val', on all processes together."""
        return extract_features(self.model, self.preprocessor,
                                self.datasets[split], **self.options)


def build_frozen_model(cfg: Config,
                       checkpoint: str,
                       encoder: str = 'online') -> nn.Module:
    """Build a pre-training config's model with a checkpoint's encoder.

    Args:
        cfg (Config): A runner's config.
        checkpoint (str): A file that ``load_encoder_into`` takes, or 'random' for
            random initialisation by the config's seed.
        encoder (str): 'online' or 'target'. Defaults to 'online'.

    Returns:
        CMAE: In evaluation mode, on the device there is.

    Raises:
        ValueError: If the config is none of pre-training.
        CheckpointError: If the checkpoint cannot be used.
    """
    if cfg.model.get('type') != 'CMAE':
        raise ValueError(
            'the config must be one of pre-training, with a model of type '
            f"'CMAE', but its model is of type {cfg.model.get('type')!r}")
    runner = Runner.from_cfg(cfg)
    model = runner.model
    if is_model_wrapper(model):
        model = model.module
    if checkpoint == RANDOM:
        model.init_weights()
        return model.eval()
    if encoder == 'target' and model.target is None:
        raise ValueError("this config's model has no target encoder, since "
                         'head.contrastive is None; take the online one')
    part = model.target.encoder if encoder == 'target' else model.backbone
    load_encoder_into(part, checkpoint, encoder)
    return model.eval()
