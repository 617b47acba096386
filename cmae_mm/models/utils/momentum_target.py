"""The target branch: a moving average of the online encoder and projector."""
from typing import Optional

import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from ..backbones.cmae_vit import split_by_mask


def check_momentum(momentum: float) -> None:
    """Check that a momentum is a share.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < momentum < 1:
        raise ValueError(
            'momentum is the share of the old target that an update keeps'
            f' and must be between 0 and 1, but got {momentum}')


class MomentumTarget(ExponentialMovingAverage):
    r"""Target encoder F_t and target projector.

    .. math::
        \theta_t \leftarrow \mu\,\theta_t + (1 - \mu)\,\theta_s

    It differs from mmengine's ``ExponentialMovingAverage`` in that the first
    update is an average like all others, that all parameters are averaged in
    one fused call, and that the target's BatchNorm statistics are its own: it
    runs in training mode and sees other images than the online branch.

    Args:
        encoder (nn.Module): The online encoder, which is copied.
        projector (nn.Module): The online projector, which is copied.
        momentum (float): mu, the share of the old target that an update
            keeps, in (0, 1). mmengine's and mmpretrain's EMA classes call
            1 - mu momentum. Defaults to 0.996.
        with_cls_token (bool): Whether the class token takes part in the
            target's attention; pooling leaves it out either way. Defaults to
            True, as in the released code.
        final_norm (bool): Whether the target encoder ends in the LayerNorm
            that the online encoder has. Defaults to False, as in the released
            code.
        mask_ratio (float): Share of patches removed from the target's input,
            drawn as the online branch's. Defaults to 0, the whole image.
        fixed (bool): Whether the target shall stay what it starts as, so that
            training without ``TargetUpdateHook`` is no mistake. Defaults to
            False.

    Raises:
        ValueError: If an argument is outside what is allowed.
    """

    def __init__(self,
                 encoder: nn.Module,
                 projector: nn.Module,
                 momentum: float = 0.996,
                 with_cls_token: bool = True,
                 final_norm: bool = False,
                 mask_ratio: float = 0.,
                 fixed: bool = False) -> None:
        check_momentum(momentum)
        super().__init__(
            nn.ModuleDict(dict(encoder=encoder, projector=projector)),
            # mmengine warns of values above 0.5; ours is set below.
            momentum=min(1 - momentum, 0.5))
        self.momentum = 1 - momentum
        self.with_cls_token = with_cls_token
        if not final_norm and self.encoder.final_norm:
            self.encoder.final_norm = False
            del self.encoder.ln1
            self.avg_parameters = dict(self.module.named_parameters())
        self.fixed = fixed
        self.mask_ratio = mask_ratio
        if mask_ratio:
            self.encoder.set_mask_ratio(mask_ratio)

    @property
    def encoder(self) -> nn.Module:
        """The target encoder F_t."""
        return self.module['encoder']

    @property
    def projector(self) -> nn.Module:
        """The target projector."""
        return self.module['projector']

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Project whole images.

        Args:
            images (torch.Tensor): The target view, (N, C, H, W).

        Returns:
            torch.Tensor: z_t^p, (N, P), without gradient.
        """
        ids_keep = None
        if self.mask_ratio:
            mask = self.encoder.generate_mask(len(images), images.device)
            ids_keep = split_by_mask(mask)[0]
        z_t = self.pool_feature(self.encode(images, ids_keep))
        return self.projector([z_t])[0]

    def encode(self,
               images: torch.Tensor,
               ids_keep: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Encode images, ``F_t(x_t)``.

        Args:
            images (torch.Tensor): (N, C, H, W).
            ids_keep (torch.Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            torch.Tensor: (N, 1 + V, D), class token first if it takes part.
        """
        tokens = self.encoder.embed(images, ids_keep)
        return self.encoder.encode(tokens[:, 0 if self.with_cls_token else 1:])

    def pool_feature(self, tokens: torch.Tensor) -> torch.Tensor:
        """Average the patch tokens, ``z_t = mean_j F_t(x_t)_j``: (N, D)."""
        return tokens[:, int(self.with_cls_token):].mean(dim=1)

    @torch.no_grad()
    def copy_from(self, online: nn.Module) -> None:
        """Make every parameter and buffer equal to the online branch's.

        Args:
            online (nn.Module): A module with ``encoder`` and ``projector``.
        """
        source = {**dict(online.named_parameters()),
                  **dict(online.named_buffers())}
        own = {**self.avg_parameters, **dict(self.module.named_buffers())}
        for name, value in own.items():
            value.copy_(source[name])

    @torch.no_grad()
    def update_parameters(self, online: nn.Module) -> None:
        """Move the target towards the online branch by one EMA step.

        Args:
            online (nn.Module): A module with ``encoder`` and ``projector``.
        """
        source = dict(online.named_parameters())
        # Fixed positions are equal in both branches and stay so.
        names = [n for n in self.avg_parameters if source[n].requires_grad]
        torch._foreach_lerp_([self.avg_parameters[n] for n in names],
                             [source[n] for n in names], self.momentum)
        self.steps += 1
