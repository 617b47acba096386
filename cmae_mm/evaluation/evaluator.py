"""A frozen encoder and labelled images: what every evaluation starts from."""
from typing import Any, Dict

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from ..checkpoints import RANDOM, load_encoder_into
from .data import build_eval_dataset, check_same_classes, eval_dataset_cfgs
from .features import FeatureSet, eval_preprocessor, extract_features


class FrozenFeatures:
    """Extracts features of labelled training and validation images.

    Args:
        model (CMAE): The model, without distributed wrapper; its weights
            are not touched.
        cfg (Config): Its pre-training config: says where the labelled images
            are, see ``eval_dataset_cfgs``, and how they are normalised.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        pool (str): 'mean' of the patch tokens, or 'cls', the class token.
            Defaults to 'mean'.
        batch_size (int): Images in a batch of each process. Defaults to 256.
        num_workers (int): Data workers of each process. Defaults to 2.
        dtype (torch.dtype): The type in which features are kept. Defaults to
            float32.
        progress (bool): Whether to show how far it is. Defaults to False.

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
                 dtype: torch.dtype = torch.float32,
                 progress: bool = False) -> None:
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
            dtype=dtype,
            progress=progress)

    def extract(self, split: str) -> FeatureSet:
        """Extract features of 'train' or 'val', on all processes together."""
        return extract_features(self.model, self.preprocessor,
                                self.datasets[split], **self.options)


def load_frozen(model: nn.Module,
                checkpoint: str,
                encoder: str = 'online') -> nn.Module:
    """Load a checkpoint's encoder into a pre-training model, for evaluation.

    Args:
        model (CMAE | FrozenViT): The model, without distributed wrapper;
            modified in place.
        checkpoint (str): A file that
            :func:`~cmae_mm.checkpoints.load_encoder_into` takes, or 'random'
            for random initialisation.
        encoder (str): 'online' or 'target'. Defaults to 'online'.

    Returns:
        CMAE: The same model, in evaluation mode.

    Raises:
        ValueError: If the model has no such encoder.
        CheckpointError: If the checkpoint cannot be used.
    """
    if checkpoint == RANDOM:
        model.init_weights()
        return model.eval()
    if encoder == 'target' and model.target is None:
        raise ValueError("this config's model has no target encoder (a CMAE "
                         'has none where head.contrastive is None); take the '
                         'online one')
    part = model.target.encoder if encoder == 'target' else model.backbone
    load_encoder_into(part, checkpoint, encoder)
    return model.eval()
