"""Contrastive Masked Autoencoders, in the paper's order.

1. Views: ``TwoViewDataPreprocessor`` crops both from one canvas, the crop of
an image that a data worker returns.
2. Masking and online encoder F_s: ``CMAEViT`` or ``CMAEConvViT``, in
   ``masked_encoders.py``.
3. Pixel decoder G_p, feature decoder G_f and projector: ``CMAENeck``, in
   ``necks.py``.
4. Target encoder F_t and its projector: :class:`MomentumTarget`.
5. Losses L_r and L_c, with the predictor: ``CMAEHead``, in
   ``heads.py``.

:meth:`CMAE.loss` connects them. In names, ``s`` is the online branch (the
paper's student) and ``t`` the target branch.

Shapes: N images of C channels, L patches of P x P pixels, V of them visible;
D is the encoder's width, E that of projections, K the number of extra tokens:
class tokens and registers.
"""
import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from .masked_encoders import split_by_mask
from .utils import (check_choice, check_momentum, complete_configs,
                    is_pretrained, keep_step_hooks, local_shard)


class MomentumTarget(nn.Module):
    r"""Target encoder F_t and target projector: averages of the online ones.

    .. math::
        \theta_t \leftarrow \mu\,\theta_t + (1 - \mu)\,\theta_s

    after each optimizer step, see :meth:`follow`. BatchNorm statistics are not
    averaged: the target runs in training mode and has its own statistics,
    since its inputs differ from those of the online branch.

    Args:
        encoder (nn.Module): The online encoder; it is copied.
        projector (nn.Module): The online projector; it is copied.
        momentum (float): Momentum mu, the weight of the old target in an
            update, in (0, 1). Defaults to 0.996.
        with_cls_token (bool): Whether the encoder uses its class token;
            pooling leaves it out either way. Defaults to True, as in the
            released code.
        final_norm (bool): Whether the target encoder has the final LayerNorm
            of the online encoder. Defaults to False, as in the released code.
        with_fusion (bool): Whether the target has the fusion layers of a
            hybrid encoder (``CMAEConvViT``). Defaults to True.
        mask_ratio (float): Ratio of masked patches in the target's input.
            Defaults to 0, the whole image.
        fixed (bool): Whether the target is never updated. Defaults to False.

    Attributes:
        momentum (float): Momentum mu of the latest or the next update.
        steps (Tensor): Number of updates, a buffer in checkpoints.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 encoder: nn.Module,
                 projector: nn.Module,
                 momentum: float = 0.996,
                 with_cls_token: bool = True,
                 final_norm: bool = False,
                 with_fusion: bool = True,
                 mask_ratio: float = 0.,
                 fixed: bool = False) -> None:
        super().__init__()
        check_momentum(momentum)
        self.encoder = deepcopy(encoder).requires_grad_(False)
        self.projector = deepcopy(projector).requires_grad_(False)
        self.register_buffer('steps', torch.tensor(0))
        self.momentum = momentum
        self.with_cls_token = with_cls_token
        if not final_norm:
            self.encoder.remove_final_norm()
        if not with_fusion:
            if getattr(encoder, 'fusions', None) is None:
                raise ValueError(
                    'target.with_fusion=False removes the fusion layers of a '
                    f'hybrid encoder, but this {type(encoder).__name__} has '
                    'none; remove the setting')
            self.encoder.remove_fusion()
        self.mask_ratio = mask_ratio
        if mask_ratio:
            self.encoder.set_mask_ratio(mask_ratio)
        self.fixed = fixed
        self._handle: RemovableHandle | None = None
        self._online: tuple[nn.Module, ...] = ()
        # Parameters of a module and of the online one, and a name.
        self._owned: list[tuple[dict, dict, str]] = []
        # Plain Python values, since torch.compile guards on them.
        self._expects_update = not fixed
        self._batches_not_updated = 0

    @property
    def num_extra_tokens(self) -> int:
        """Number K of tokens before the patches' tokens."""
        return self.encoder.num_extra_tokens if self.with_cls_token else 0

    def forward(self, images: Tensor) -> Tensor:
        """Project whole images.

        Args:
            images (Tensor): The target view, (N, C, H, W).

        Returns:
            Tensor: Target projections z_t^p, (N, E), without gradient.
        """
        if self._expects_update and self.training and torch.is_grad_enabled():
            self._warn_if_not_updated()
        with torch.no_grad():
            return self.projector((self.pool(images), ))[0]

    def pool(self, images: Tensor) -> Tensor:
        """Encode and pool images, ``z_t = mean_j F_t(x_t)_j``.

        Args:
            images (Tensor): The target view, (N, C, H, W).

        Returns:
            Tensor: Target features, (N, D), without gradient.
        """
        with torch.no_grad():
            ids_keep = None
            if self.mask_ratio:
                mask = self.encoder.generate_mask(len(images), images.device)
                ids_keep = split_by_mask(mask)[0]
            tokens = self.encode(images, ids_keep)
            return tokens[:, self.num_extra_tokens:].mean(dim=1)

    def encode(self,
               images: Tensor,
               ids_keep: Tensor | None = None) -> Tensor:
        """Encode images, ``F_t(x_t)``.

        Args:
            images (Tensor): Images, (N, C, H, W).
            ids_keep (Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            Tensor: Tokens, (N, K + V, D), class token first if it is used.
        """
        embedded = self.encoder.embed(images, ids_keep)
        unused = self.encoder.num_extra_tokens - self.num_extra_tokens
        if unused:
            embedded = embedded[:, unused:]
        return self.encoder.encode(embedded)

    def copy_from(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Copy every parameter and buffer of the online branch.

        Args:
            encoder (nn.Module): The online encoder.
            projector (nn.Module): The online projector.
        """
        # The target may have no final norm and no fusion layers.
        self.encoder.load_state_dict(encoder.state_dict(), strict=False)
        self.projector.load_state_dict(projector.state_dict())

    @torch.no_grad()
    def update(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Update the moving average once.

        Args:
            encoder (nn.Module): The online encoder.
            projector (nn.Module): The online projector.
        """
        if self._online != (encoder, projector):
            # Modules are walked once: that takes longer than the update.
            self._online = encoder, projector
            self._owned = []
            for own, online in ((self.encoder, encoder),
                                (self.projector, projector)):
                for path, _ in own.named_parameters():
                    place, _, name = path.rpartition('.')
                    self._owned.append((
                        own.get_submodule(place)._parameters,
                        online.get_submodule(place)._parameters, name))
        # Fixed positions are equal in both branches.
        pairs = [(own[name], online[name]) for own, online, name in self._owned
                 if online[name].requires_grad]
        averages, sources = ([local_shard(p) for p in half]
                             for half in zip(*pairs))
        torch._foreach_lerp_(averages, sources, 1 - self.momentum)
        self.steps += 1
        self._expects_update = False

    def follow(self,
               optimizer: torch.optim.Optimizer,
               encoder: nn.Module,
               projector: nn.Module,
               momentum: Callable[[int], float] | None = None
               ) -> RemovableHandle:
        """Update after each step of the online branch's optimizer.

        There is no update while gradients accumulate or when a loss scaler
        skips a step. A second call replaces the first.

        Args:
            optimizer (torch.optim.Optimizer): Optimizer of the online branch.
            encoder (nn.Module): The online encoder.
            projector (nn.Module): The online projector.
            momentum (Callable, optional): Function from the number of updates
                to mu. Defaults to None, :attr:`momentum` for all.

        Returns:
            RemovableHandle: Its ``remove()`` stops the updates.

        Raises:
            ValueError: If the target is fixed.
        """
        if self.fixed:
            raise ValueError('a target with fixed=True cannot follow an '
                             'optimizer; remove fixed')
        if self._handle is not None:
            self._handle.remove()
        done = int(self.steps)

        def move(optimizer: Any, args: Any, kwargs: Any) -> None:
            nonlocal done
            # Fused optimizers are called on inf gradients and do nothing.
            found_inf = getattr(optimizer, 'found_inf', None)
            if found_inf is not None and found_inf.item():
                return
            if momentum is not None:
                self.momentum = momentum(done)
            self.update(encoder, projector)
            done += 1

        keep_step_hooks(optimizer)
        self._handle = optimizer.register_step_post_hook(move)
        self._expects_update = False
        return self._handle

    @property
    def is_following(self) -> bool:
        """Whether an optimizer's steps update the target."""
        if self._handle is None:
            return False
        return self._handle.id in (self._handle.hooks_dict_ref() or {})

    def __getstate__(self) -> dict:
        # A copy does not follow the optimizer, nor this online branch.
        return dict(self.__dict__, _handle=None, _online=(), _owned=[])

    def _warn_if_not_updated(self) -> None:
        self._batches_not_updated += 1
        self._expects_update = self._batches_not_updated < 2
        if not self._expects_update:
            print_log(
                'CMAE is training, but nothing updates its target: add '
                "custom_hooks=[dict(type='TargetUpdateHook')] to the config, "
                'or call model.target.follow(optimizer, model.backbone, '
                'model.neck.projector) once.',
                logger='current',
                level=logging.WARNING)


@MODELS.register_module()
class CMAE(BaseSelfSupervisor):
    """Contrastive Masked Autoencoder (arXiv 2207.13532).

    The online branch encodes the visible patches of one view, reconstructs
    the masked ones, and completes and projects the image's feature. The
    target branch, a moving average of the online encoder and projector,
    encodes the whole second view. :meth:`loss` is the paper's Fig. 2 from left
    to right. ``TargetUpdateHook`` or :meth:`MomentumTarget.follow` updates the
    target after each optimizer step.

    With ``head.contrastive=None`` this is an MAE without target, feature
    decoder and projector, regardless of their settings.

    Args:
        backbone (dict | nn.Module): The online encoder, ``CMAEViT`` or
            ``CMAEConvViT``.
        neck (dict): Arguments of ``CMAENeck``. Sizes that follow from the
            encoder are filled in.
        head (dict): Arguments of ``CMAEHead``. ``patch_size``,
            ``in_channels`` and the predictor's width are filled in.
        target (dict): Arguments of :class:`MomentumTarget`: ``momentum``
            (0.996), ``with_cls_token`` (True), ``final_norm`` (False),
            ``with_fusion`` (True), ``mask_ratio`` (0), ``fixed`` (False).
            Defaults to the released code's.
        micro_batch (int, optional): Number of images whose activations are
            in memory at a time; the losses are those of the whole batch, see
            ``micro_batch_loss``. Defaults to None, all.
        data_preprocessor (dict | nn.Module, optional): Defaults to
            mmpretrain's ``SelfSupDataPreprocessor``.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If neck or head contradict the encoder or each other, the
            encoder is not configured for pre-training, or ``micro_batch``
            cannot be used.
    """

    def __init__(self,
                 backbone: dict | nn.Module,
                 neck: dict,
                 head: dict,
                 target: dict = dict(),
                 micro_batch: int | None = None,
                 data_preprocessor: dict | nn.Module | None = None,
                 init_cfg: dict | None = None) -> None:
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        neck, head = complete_configs(backbone, neck, head)
        if not isinstance(data_preprocessor, nn.Module):
            # With scope, since other projects have another default scope.
            data_preprocessor = dict(
                type='mmpretrain.SelfSupDataPreprocessor') | dict(
                    data_preprocessor or {})
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg)
        self.target: MomentumTarget | None = None
        if self.head.contrastive is not None:
            self.target = MomentumTarget(self.backbone, self.neck.projector,
                                         **target)
        check_micro_batch(micro_batch, self)
        self.micro_batch = micro_batch

    def init_weights(self) -> None:
        """Initialise the online branch and start the target as its copy."""
        super().init_weights()
        self.reset_target()
        if is_pretrained(self.backbone.init_cfg):
            print_log(
                'The pixel decoder is new.' if self.target is None else
                'The target starts as a copy of the loaded encoder; decoders, '
                'projector and predictor are new.',
                logger='current')

    def reset_target(self) -> None:
        """Copy the online branch to the target, if there is one."""
        if self.target is not None:
            self.target.copy_from(self.backbone, self.neck.projector)

    def loss(self,
             inputs: Sequence[Tensor],
             data_samples: list[DataSample] | None = None
             ) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            inputs (Sequence[Tensor]): The online and the target view,
                (N, C, H, W) each, normalised. MAE needs the first only, or a
                tensor.
            data_samples (list[DataSample], optional): Not used.

        Returns:
            dict[str, Tensor]: ``loss_rc`` and ``loss_ct`` (the total loss is
            their sum), and the statistics of :meth:`CMAEContrastiveHead.loss`.

        Raises:
            ValueError: If there are not two views, or they are not of the
                encoder's size.
            RuntimeError: If no gradient reaches the encoder.
        """
        x_s, x_t = self._split_views(inputs)
        if self.micro_batch is not None:
            return micro_batch_loss(self, x_s, x_t, self.micro_batch)

        # z_v = F_s(x_v + p_v), (N, K + V, D)
        mask = self.backbone.generate_mask(len(x_s), x_s.device)
        z_v, ids_restore = self.backbone(x_s, mask)
        check_gradient(z_v, self.backbone)
        # y' = G_p(z_v, mask tokens), (N, L - V, P*P*C)
        # y_s = mean_i G_f(z_v, mask tokens)_i, projected, (N, E)
        pred_pixel, proj_s = self.neck(z_v, ids_restore)

        # z_t^p: the whole second view, without gradient, (N, E)
        proj_t = None if self.target is None else self.target(x_t)

        # L = L_r + lambda_c * L_c
        return self.head.loss(pred_pixel, x_s, mask, proj_s, proj_t)

    def _split_views(
        self, inputs: Tensor | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        views = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        needed = 1 if self.target is None else 2
        if len(views) < needed:
            raise ValueError(
                'CMAE needs two views of each image, the online and the '
                f'target one, but got {len(views)}; use the PixelShift '
                'transform, or MultiView for two independent crops')
        return views[0], views[-1]

    def extract_feat(self,
                     inputs: Tensor | Sequence[Tensor],
                     pool: str = 'mean',
                     encoder: str = 'online') -> Tensor:
        """Extract features of whole images, for evaluation.

        Args:
            inputs (Tensor | Sequence[Tensor]): Images, (N, C, H, W),
                normalised; the first of several views is used.
            pool (str): 'mean' (of the patch tokens), 'cls' (the class token,
                or the mean of several), or 'none' (all tokens, class tokens
                first). Defaults to 'mean'.
            encoder (str): 'online' or 'target'. Defaults to 'online'.

        Returns:
            Tensor: Features, (N, D), or (N, K + L, D) for
            ``pool='none'``.

        Raises:
            ValueError: If ``pool`` or ``encoder`` is invalid, or the model has
                no such part.
        """
        check_choice('pool', pool, ('mean', 'cls', 'none'))
        check_choice('encoder', encoder, ('online', 'target'))
        if not isinstance(inputs, Tensor):
            inputs = inputs[0]
        if encoder == 'online':
            tokens = self.backbone(inputs)[-1]
            num_extra = self.backbone.num_extra_tokens
        elif self.target is not None:
            tokens = self.target.encode(inputs)
            num_extra = self.target.num_extra_tokens
        else:
            raise ValueError('this model has no target encoder, since '
                             'head.contrastive is None')
        if pool == 'none':
            return tokens
        if pool == 'mean':
            return tokens[:, num_extra:].mean(dim=1)
        classes = self.backbone.num_class_tokens
        if not num_extra or not classes:
            raise ValueError(
                f'the {encoder} encoder does not use the class token; use '
                "pool='mean'")
        return tokens[:, :classes].mean(dim=1)


def check_gradient(tokens: torch.Tensor, encoder: nn.Module) -> None:
    """Check that training reaches the encoder.

    Args:
        tokens (torch.Tensor): Output of the encoder.
        encoder (nn.Module): The online encoder.

    Raises:
        RuntimeError: If gradients are enabled and do not reach it.
    """
    if not torch.is_grad_enabled() or tokens.requires_grad:
        return
    if any(p.requires_grad for p in encoder.parameters()):
        raise RuntimeError(
            'no gradient reaches the encoder, for example with the reentrant '
            "activation checkpointing of mmengine's Runner; train with "
            'ResumableRunner, or remove activation_checkpointing')


def check_micro_batch(micro_batch: int | None, model: nn.Module) -> None:
    """Check that a model can be trained in micro-batches.

    Args:
        micro_batch (int, optional): Number of images of a micro-batch; None
            for training without.
        model (CMAE): The model.

    Raises:
        ValueError: If the number is below 1, there is no contrastive loss, or
            a part that runs in micro-batches has BatchNorm.
    """
    if micro_batch is None:
        return
    if micro_batch < 1:
        raise ValueError(
            f'micro_batch must be 1 image or more, but got {micro_batch}')
    if model.head.contrastive is None:
        raise ValueError(
            f'micro_batch={micro_batch} is for the contrastive loss, but this '
            'is an MAE; use optim_wrapper.accumulative_counts, which is exact '
            'for it and cheaper')
    parts = dict(backbone=model.backbone)
    parts |= {f'neck.{name}': part for name, part in
              model.neck.named_children() if name != 'projector'}
    for name, part in parts.items():
        if any(isinstance(m, _BatchNorm) for m in part.modules()):
            raise ValueError(
                f'micro_batch={micro_batch} cannot be used: {name} has '
                'BatchNorm, which would use statistics of micro-batches; '
                'remove micro_batch')


def micro_batch_loss(model: nn.Module, x_s: torch.Tensor,
                     x_t: torch.Tensor,
                     micro_batch: int) -> dict[str, torch.Tensor]:
    r"""Compute a CMAE's losses, with activations of one micro-batch at a time.

    Gradient caching (Gao et al., arXiv 2101.06983): the features of all
    micro-batches are computed without activations, the contrastive loss is
    that of the whole batch, and each micro-batch is computed again in its
    backward pass. Projector and predictor, and their BatchNorm, see the
    features of the whole batch, so the result is exact. Masks are drawn for
    the whole batch; dropout and drop path are drawn for each micro-batch, the
    same both times.

    Implemented as torch's activation checkpointing with one segment per
    micro-batch. The second forward pass of the online branch takes about a
    quarter more time.

    Args:
        model (CMAE): The model.
        x_s (torch.Tensor): Online views, (N, C, H, W).
        x_t (torch.Tensor): Target views, (N, C, H, W).
        micro_batch (int): Number of images at a time; the last may have fewer.

    Returns:
        dict[str, torch.Tensor]: See ``CMAE.loss``.
    """
    neck, head = model.neck, model.head

    def encode(images: torch.Tensor,
               mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z_v, ids_restore = model.backbone(images, mask)
        check_gradient(z_v, model.backbone)
        pred_pixel = neck.pixel_decoder(z_v, ids_restore, of='masked')
        # L_r, summed over images; y_s
        loss_rc = head.reconstruct(pred_pixel, images, mask)
        return loss_rc * len(images), neck.pool_feature(z_v, ids_restore)

    mask = model.backbone.generate_mask(len(x_s), x_s.device)
    losses, features = _map_chunks(
        lambda *part: checkpoint(encode, *part, use_reentrant=False),
        micro_batch, x_s, mask)
    (pooled, ) = _map_chunks(
        lambda images: (model.target.pool(images), ), micro_batch, x_t)
    with torch.no_grad():
        proj_t = model.target.projector((torch.cat(pooled), ))[0]
    # (N, D), of all micro-batches
    proj_s = neck.projector((torch.cat(features), ))[0]
    return dict(
        loss_rc=torch.stack(losses).sum() / len(x_s),
        **head.contrastive.loss(proj_s, proj_t))


def _map_chunks(function: Callable, size: int,
                *tensors: torch.Tensor) -> tuple:
    """Call a function for each part of some tensors."""
    parts = zip(*(tensor.split(size) for tensor in tensors))
    return tuple(zip(*(function(*part) for part in parts)))
