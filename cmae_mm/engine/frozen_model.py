"""Frozen pre-trained models for evaluation."""
import torch
from mmengine.config import Config
from mmpretrain.models import BaseSelfSupervisor, VisionTransformer
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..evaluation.evaluator import load_frozen
from ..models.utils import check_choice
from .device import unwrapped_model
from .runner import ResumableRunner


class FrozenViT(nn.Module):
    """Another method's plain vision transformer, with a CMAE's interface.

    Args:
        model (BaseSelfSupervisor): A model of mmpretrain's whose backbone is
            a ``VisionTransformer``.
    """

    target = None

    def __init__(self, model: BaseSelfSupervisor) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.backbone.out_type = 'raw'
        self.data_preprocessor = model.data_preprocessor

    def init_weights(self) -> None:
        """Initialise the encoder."""
        self.backbone.init_weights()

    @torch.no_grad()
    def extract_feat(self, inputs: Tensor, pool: str = 'mean',
                     encoder: str = 'online') -> Tensor:
        """Extract features of whole images.

        Args:
            inputs (torch.Tensor): Images, (N, C, H, W), normalised.
            pool (str): 'mean' of the patch tokens, or 'cls'. Defaults to
                'mean'.
            encoder (str): 'online', the only one. Defaults to 'online'.

        Returns:
            torch.Tensor: Features, (N, D).

        Raises:
            ValueError: If ``pool`` or ``encoder`` is none of these, or there
                is no class token.
        """
        check_choice('pool', pool, ('mean', 'cls'))
        check_choice('encoder', encoder, ('online', ))
        # Not the forward pass of subclasses, which masks.
        tokens = VisionTransformer.forward(self.backbone, inputs)[-1]
        extra = self.backbone.num_extra_tokens
        if pool == 'mean':
            return tokens[:, extra:].mean(dim=1)
        if not extra:
            raise ValueError("this encoder has no class token; use "
                             "pool='mean'")
        return tokens[:, 0]


def build_frozen_model(cfg: Config,
                       checkpoint: str,
                       encoder: str = 'online') -> nn.Module:
    """Build a pre-training config's model with a checkpoint's encoder.

    Args:
        cfg (Config): The config of a runner, which seeds and starts the
            processes as for training. Its model is a CMAE, or another
            self-supervised method of mmpretrain with a ``VisionTransformer``.
        checkpoint (str): A file that
            :func:`~cmae_mm.checkpoints.load_encoder_into` takes, or 'random'
            for random initialisation by the config's seed.
        encoder (str): 'online' or 'target'. Defaults to 'online'.

    Returns:
        CMAE | FrozenViT: The model in evaluation mode, on its device, without
        distributed wrapper.

    Raises:
        ValueError: If the config is not one of pre-training, or its model has
            no such encoder.
        CheckpointError: If the checkpoint cannot be used.
    """
    other = cfg.model.get('type') != 'CMAE'
    if other:
        _check_other_method(cfg.model)
    model = unwrapped_model(ResumableRunner.from_cfg(cfg))
    return load_frozen(FrozenViT(model) if other else model, checkpoint,
                       encoder)


def _check_other_method(model: dict) -> None:
    """Check that a model other than a CMAE can be evaluated."""
    method = MODELS.get(model.get('type') or '')
    backbone = MODELS.get((model.get('backbone') or {}).get('type') or '')
    if not (_is(method, BaseSelfSupervisor)
            and _is(backbone, VisionTransformer)):
        raise ValueError(
            'the config must be one of pre-training, with a model of type '
            "'CMAE' or a self-supervised method of mmpretrain's on a "
            f"VisionTransformer, but its model is of type "
            f"{model.get('type')!r} on "
            f"{(model.get('backbone') or {}).get('type')!r}")


def _is(found: object, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind)
