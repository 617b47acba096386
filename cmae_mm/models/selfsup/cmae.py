"""The algorithm, in the order in which the paper tells it."""
from typing import Dict, List, Optional, Sequence, Union

import torch
from mmengine.logging import print_log
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from ..utils import MomentumTarget, fill_in, mlp_cfg

POOLS = ('mean', 'cls', 'none')
ENCODERS = ('online', 'target')


def _with_type(data_preprocessor):
    """Name the default's scope, as a project's own may be another."""
    if data_preprocessor is None or isinstance(data_preprocessor, dict):
        return dict(type='mmpretrain.SelfSupDataPreprocessor') | dict(
            data_preprocessor or {})
    return data_preprocessor


@MODELS.register_module()
class CMAE(BaseSelfSupervisor):
    """Contrastive Masked Autoencoder (arXiv 2207.13532).

    The online branch encodes the visible patches of one view, reconstructs
    the removed ones, and completes and projects the image's feature. The
    target branch, a moving average of the online encoder and projector, sees
    the whole of a second view. :meth:`loss` is the paper's Fig. 2 read from
    left to right. The target is moved by ``TargetUpdateHook`` after each
    optimizer step, see :meth:`update_target`.

    With ``head.contrastive=None`` the contrastive branch is left out
    altogether and this is MAE.

    Args:
        backbone (dict | nn.Module): The online encoder, ``CMAEViT``.
        neck (dict): ``CMAENeck``'s arguments; what follows from the encoder
            (``embed_dims``, ``num_patches``, ``patch_size``,
            ``in_channels``) is filled in.
        head (dict): ``CMAEHead``'s arguments; ``patch_size``, ``in_channels``
            and the predictor's width are filled in.
        target (dict): ``MomentumTarget``'s arguments: ``momentum`` (0.996),
            ``with_cls_token`` (True), ``final_norm`` (False), ``mask_ratio``
            (0, the target sees whole images), ``fixed`` (False). Defaults to
            the released code's.
        data_preprocessor (dict | nn.Module, optional): Defaults to
            mmpretrain's ``SelfSupDataPreprocessor``.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If neck or head contradict the encoder, or the encoder is
            set up for something else than pre-training.
    """

    def __init__(self,
                 backbone: Union[dict, nn.Module],
                 neck: dict,
                 head: dict,
                 target: dict = dict(),
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        if getattr(backbone, 'out_type', 'raw') != 'raw':
            raise ValueError(
                f'backbone.out_type={backbone.out_type!r} is for classifiers '
                'and dense tasks; pre-training decodes all tokens: leave '
                'out_type out')
        head = self._complete_head(head, backbone, neck)
        neck = self._complete_neck(neck, backbone, head)
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=_with_type(data_preprocessor),
            init_cfg=init_cfg)
        self.target: Optional[MomentumTarget] = None
        if self.with_contrast:
            self.target = MomentumTarget(
                encoder=self.backbone,
                projector=self.neck.projector,
                **target)
        self.target_is_driven = False

    @staticmethod
    def _complete_head(head: dict, backbone: nn.Module, neck: dict) -> dict:
        """Fill in the sizes that follow from the encoder and the projector."""
        head = fill_in(
            dict(type='mmpretrain.CMAEHead') | dict(head),
            'head',
            patch_size=backbone.patch_size,
            in_channels=backbone.patch_embed.projection.in_channels)
        if head.get('contrastive') is not None:
            projector = neck.get('projector', {})
            if projector is None:
                raise ValueError(
                    'neck.projector=None leaves the contrastive branch '
                    'without a projector; set head.contrastive=None as well, '
                    'for MAE, or leave neck.projector out')
            width = mlp_cfg(projector, 'neck.projector')['out_channels']
            contrastive = dict(head['contrastive'])
            contrastive['predictor'] = mlp_cfg(
                contrastive.get('predictor', {}),
                'head.contrastive.predictor',
                in_channels=width,
                out_channels=width)
            head['contrastive'] = contrastive
        return head

    @staticmethod
    def _complete_neck(neck: dict, backbone: nn.Module, head: dict) -> dict:
        """Fill in the sizes that follow from the encoder."""
        neck = fill_in(
            dict(type='mmpretrain.CMAENeck') | dict(neck),
            'neck',
            embed_dims=backbone.embed_dims,
            num_patches=backbone.num_patches,
            patch_size=backbone.patch_size,
            in_channels=backbone.patch_embed.projection.in_channels)
        if head.get('contrastive') is None:
            neck['projector'] = None
        return neck

    @property
    def with_contrast(self) -> bool:
        """Whether there is a contrastive branch (otherwise this is MAE)."""
        return self.head.contrastive is not None

    @property
    def online(self) -> nn.ModuleDict:
        """The part of the online branch that the target averages."""
        return nn.ModuleDict(
            dict(encoder=self.backbone, projector=self.neck.projector))

    def init_weights(self) -> None:
        """Initialise the online branch and start the target as its copy."""
        super().init_weights()
        if self.target is not None:
            self.target.copy_from(self.online)

    def loss(self,
             inputs: Sequence[torch.Tensor],
             data_samples: Optional[List[DataSample]] = None
             ) -> Dict[str, torch.Tensor]:
        """Compute the losses of one batch.

        Args:
            inputs (Sequence[torch.Tensor]): The online and the target view,
                (N, C, H, W) each, normalised. MAE takes the first alone, also
                as a plain tensor.
            data_samples (List[DataSample], optional): Not used.

        Returns:
            Dict[str, torch.Tensor]: ``loss_rc`` and ``loss_ct`` (the total
            loss is their sum), and the figures of
            :meth:`CMAEContrastiveHead.loss`.

        Raises:
            ValueError: If there are not two views, or they are not of the
                encoder's size.
            RuntimeError: If the encoder would not be trained.
        """
        x_s, x_t = self._split_views(inputs)

        # z_v = F_s(x_v + p_v), (N, 1 + V, D)
        mask = self.backbone.generate_mask(len(x_s), x_s.device)
        z_v, ids_restore = self.backbone(x_s, mask)
        self._check_gradient(z_v)
        # y' = G_p(z_v, mask tokens); y_s = mean_i G_f(z_v, mask tokens)_i,
        # projected
        pred_pixel, proj_s = self.neck(z_v, ids_restore)

        proj_t = None
        if self.target is not None:
            self._warn_if_target_stands_still()
            # z_t^p: the whole second view, without gradient
            proj_t = self.target(x_t)

        return self.head.loss(pred_pixel, x_s, mask, proj_s, proj_t)

    def _split_views(self, inputs):
        views = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
        needed = 2 if self.with_contrast else 1
        if len(views) < needed:
            raise ValueError(
                'CMAE needs two views of each image, the online and the '
                f'target one, but got {len(views)}; use the PixelShift '
                'transform, or MultiView for two independent crops')
        return views[0], views[-1]

    def _check_gradient(self, tokens: torch.Tensor) -> None:
        if not torch.is_grad_enabled() or tokens.requires_grad:
            return
        if any(p.requires_grad for p in self.backbone.parameters()):
            raise RuntimeError(
                'no gradient reaches the encoder, as with the reentrant '
                "activation checkpointing of mmengine's own Runner: train "
                'with ResumableRunner, or leave activation_checkpointing out')

    def update_target(self) -> None:
        """Move the target by one EMA step; call it after optimizer steps."""
        self.target.update_parameters(self.online)

    def mark_target_driven(self) -> None:
        """Say that something calls :meth:`update_target` after each step."""
        self.target_is_driven = True

    def _warn_if_target_stands_still(self) -> None:
        if self.target_is_driven or self.target.fixed or not (self.training
                                          and torch.is_grad_enabled()):
            return
        self.target_is_driven = True  # once is enough
        print_log(
            'CMAE trains, but nothing moves its target: add '
            "custom_hooks=[dict(type='TargetUpdateHook')] to the config, or "
            'call update_target() after each optimizer step and '
            'mark_target_driven() once.',
            logger='current',
            level=30)

    @torch.no_grad()
    def reconstruct(
        self,
        images: torch.Tensor,
        mask: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Reconstruct removed patches, to look at.

        Args:
            images (torch.Tensor): (N, C, H, W), normalised.
            mask (torch.Tensor, optional): Bool, (N, L), True = removed.
                Defaults to a random one.

        Returns:
            Dict[str, torch.Tensor]: ``mask`` (N, L), and images (N, C, H, W)
            in the input's normalisation: ``masked``, with zeros for removed
            patches, and ``reconstruction``, with predictions there. Where the
            loss normalises patches, each is given back its own mean and
            variance.
        """
        if mask is None:
            mask = self.backbone.generate_mask(len(images), images.device)
        tokens, ids_restore = self.backbone(images, mask)
        pred = self.neck.pixel_decoder(tokens, ids_restore).float()
        head = self.head.reconstruction
        patches = head.patchify(images)
        if head.norm_pix:
            mean = patches.mean(dim=-1, keepdim=True)
            var = patches.var(dim=-1, keepdim=True)
            pred = pred * (var + 1e-6)**.5 + mean
        removed = mask.unsqueeze(-1)
        return dict(
            mask=mask,
            masked=head.unpatchify(patches.masked_fill(removed, 0)),
            reconstruction=head.unpatchify(
                torch.where(removed, pred, patches)))

    def extract_feat(self,
                     inputs: Union[torch.Tensor, Sequence[torch.Tensor]],
                     pool: str = 'mean',
                     encoder: str = 'online') -> torch.Tensor:
        """Extract features of whole images, for evaluation.

        Args:
            inputs (torch.Tensor | Sequence[torch.Tensor]): (N, C, H, W),
                normalised; of several views the first is taken.
            pool (str): 'mean' (of the patch tokens), 'cls', or 'none' (all
                tokens, class token first). Defaults to 'mean'.
            encoder (str): 'online' or 'target'. Defaults to 'online'.

        Returns:
            torch.Tensor: (N, D), or (N, 1 + L, D) for ``pool='none'``.

        Raises:
            ValueError: If ``pool`` or ``encoder`` is none of these, or the
                model has no such part.
        """
        if pool not in POOLS or encoder not in ENCODERS:
            raise ValueError(f'pool must be one of {POOLS} and encoder one of '
                             f'{ENCODERS}, but got {pool!r} and {encoder!r}')
        if encoder == 'target' and self.target is None:
            raise ValueError('this model has no target encoder, since '
                             'head.contrastive is None')
        if not isinstance(inputs, torch.Tensor):
            inputs = inputs[0]
        if encoder == 'online':
            tokens, with_cls_token = self.backbone(inputs)[-1], True
        else:
            tokens = self.target.encode(inputs)
            with_cls_token = self.target.with_cls_token
        if pool == 'none':
            return tokens
        if pool == 'mean':
            return tokens[:, int(with_cls_token):].mean(dim=1)
        if not with_cls_token:
            raise ValueError('the class token takes no part in the target '
                             "encoder; use pool='mean'")
        return tokens[:, 0]
