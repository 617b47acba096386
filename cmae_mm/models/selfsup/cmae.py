"""Contrastive Masked Autoencoders, in the order in which the paper tells it.

- Views: ``TwoViewDataPreprocessor`` cuts both from one canvas, before
  :meth:`CMAE.loss` gets them.
- Masking: :class:`BlockMasking`, :func:`split_by_mask`.
- Online encoder F_s: :class:`CMAEViT`; with a convolutional stem
  ``CMAEConvViT``, in ``cmae_convvit.py``. Its decoders G_p and G_f and the
  projector are ``CMAENeck``, in ``necks/cmae_neck.py``.
- Target encoder F_t and its projector: :class:`MomentumTarget`.
- Losses: :meth:`CMAE.loss` puts it all together; predictor, L_r and L_c are
  ``CMAEHead``, in ``heads/cmae_head.py``.

Shapes: N images of C channels, L patches of P x P pixels, V of them visible;
D is the encoder's width, E that of projections, K the number of class tokens.
"""
import logging
from copy import deepcopy
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models import BaseSelfSupervisor, VisionTransformer
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..utils import (
    MAE_INIT,
    check_arch,
    check_choice,
    check_fusion,
    check_gradient,
    check_grid,
    check_images,
    check_in_channels,
    check_momentum,
    check_width,
    complete_parts,
    count_visible,
    cut_patches,
    is_pretrained,
    keep_step_hooks,
    local_part,
    note_visible,
    preprocessor_cfg,
    start_from_encoder,
    use_plain_drop_rates,
    with_mini,
)
from .gradient_caching import check_micro_batch, loss_by_micro_batches


class BlockMasking:
    """Random masking of an encoder's patches, in blocks.

    A mixin for encoders with a square grid of patches, which set ``grid`` and
    ``mask_block`` and call :meth:`set_mask_ratio`.

    Attributes:
        grid (int): Side of the grid in patches.
        mask_block (int): Side of a masking block in patches.
        mask_ratio (float): Share of the patches that is removed.
    """

    grid: int
    mask_block: int
    mask_ratio: float

    def set_mask_ratio(self, mask_ratio: float) -> None:
        """Choose the share of the patches that is removed.

        Args:
            mask_ratio (float): Share of removed patches, in (0, 1).

        Raises:
            ValueError: If it leaves nothing visible or nothing masked.
        """
        num_blocks = (self.grid // self.mask_block)**2
        # 1e-6 so that a ratio of 0.9 keeps 10 of 100 and not 9.
        num_keep = int(num_blocks * (1 - mask_ratio) + 1e-6)
        if not 0 < mask_ratio < 1 or not 0 < num_keep < num_blocks:
            raise ValueError(
                f'mask_ratio={mask_ratio} keeps {num_keep} of {num_blocks} '
                f'masking units ({self.mask_block}x{self.mask_block} patches '
                'each); at least one must stay visible and at least one be '
                'removed')
        self.mask_ratio = mask_ratio
        self._num_blocks_kept = num_keep

    def generate_mask(self, num_images: int,
                      device: Union[str, torch.device]) -> torch.Tensor:
        """Draw which patches are removed; override to mask differently.

        Blocks of ``mask_block x mask_block`` patches are kept at random,
        ``int(blocks * (1 - mask_ratio))`` of them in every image.

        Args:
            num_images (int): Number N of images.
            device (str | torch.device): Where the mask is needed.

        Returns:
            torch.Tensor: Bool, (N, L), row-major over the patch grid,
            True = removed, the same number of visible patches in every row.
        """
        side = self.grid // self.mask_block
        noise = torch.rand(num_images, side * side, device=device)
        keep = noise.argsort(dim=1)[:, :self._num_blocks_kept]
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask.scatter_(1, keep, False)
        # each block to its patches, (N, L)
        block = self.mask_block
        mask = mask.view(num_images, side, 1, side, 1).expand(
            -1, -1, block, -1, block).reshape(num_images, -1)
        return note_visible(mask, self._num_blocks_kept * block**2)


def split_by_mask(mask: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Turn a mask into the token orders that encoder and decoders use.

    Args:
        mask (torch.Tensor): Bool, (N, L), True = removed. Every row must keep
            the same number V of visible tokens.

    Returns:
        Tuple[torch.Tensor, torch.Tensor]:

        - ``ids_keep`` (N, V): the visible patches, in row-major order.
        - ``ids_restore`` (N, L): where each patch stands in the sequence
          "visible tokens, then mask tokens".

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If rows differ in their number of visible tokens, or if
            nothing is visible or nothing is masked.
    """
    num_visible = count_visible(mask)
    ids_shuffle = mask.to(torch.uint8).argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :num_visible], ids_restore


@MODELS.register_module()
class CMAEViT(BlockMasking, VisionTransformer):
    """Vision transformer that encodes the visible patches only.

    This is the online encoder F_s: patch embedding, fixed 2-D sine-cosine
    positions, then the transformer over a class token and the visible
    patches, ``z_v = F_s(x_v + p_v)``. Without a mask it is mmpretrain's
    ``VisionTransformer``, with the same parameter names.

    Args:
        arch (str | dict): As mmpretrain's ``VisionTransformer``, and 'mini',
            128 wide with 4 layers. The ViT-S of the literature is
            'deit-small'. Defaults to 'base'.
        img_size (int): Side of the square input in pixels; ``patch_size``
            must divide it. Defaults to 224.
        patch_size (int): Side P of a patch in pixels. Defaults to 16.
        mask_ratio (float): Share of the patches that is removed, in (0, 1).
            Defaults to 0.65, the released code's.
        mask_block (int): Side of a masking block in patches: 1 masks single
            patches (the paper's text), 2 blocks of 2x2 (the released code).
            Must divide the patch grid. Defaults to 2.
        out_type (str): What ``forward`` returns without a mask, see
            ``VisionTransformer``. Defaults to 'raw', all tokens, class token
            first.
        init_cfg (dict | list, optional): Defaults to MAE's initialisation:
            Xavier-uniform linear layers, LayerNorm at one. A
            ``dict(type='Pretrained', ...)`` is loaded as by ``TransferViT``.
        **kwargs: Other arguments of ``VisionTransformer``, but for
            ``with_cls_token``: there always is a class token.

    Raises:
        ValueError: If ``arch`` is not known, there are no channels or more
            than 64, the image is not square, the patch does not divide it,
            the block does not divide the grid, the ratio leaves nothing
            visible or nothing masked, or the width is no multiple of 4 and of
            the number of heads.
    """

    arch_zoo = with_mini(VisionTransformer.arch_zoo)

    def __init__(self,
                 arch: Union[str, dict] = 'base',
                 img_size: int = 224,
                 patch_size: int = 16,
                 mask_ratio: float = 0.65,
                 mask_block: int = 2,
                 out_type: str = 'raw',
                 init_cfg: Optional[Union[dict, List[dict]]] = None,
                 **kwargs) -> None:
        check_arch(arch, self.arch_zoo)
        check_in_channels(kwargs.get('in_channels', 3))
        grid = check_grid(img_size, patch_size, mask_block)
        super().__init__(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            out_type=out_type,
            with_cls_token=True,
            init_cfg=MAE_INIT if init_cfg is None else init_cfg,
            **kwargs)
        check_width(self.embed_dims, self.arch_settings['num_heads'],
                    'backbone.arch.')
        use_plain_drop_rates(self)
        self.patch_size = patch_size
        self.in_channels = self.patch_embed.projection.in_channels
        self.grid = grid
        self.num_patches = grid**2
        self.mask_block = mask_block
        self.set_mask_ratio(mask_ratio)
        # Sine-cosine positions are not learnt.
        self.pos_embed.requires_grad = False

    def init_weights(self) -> None:
        """Initialise as MAE does, or load an encoder, every key or none.

        ``dict(type='Pretrained', checkpoint=..., encoder='online')`` takes
        what ``TransferViT`` takes.

        Raises:
            CheckpointError: If the checkpoint is missing or does not fit.
        """
        if start_from_encoder(self):
            return
        if self.init_cfg is None:
            self.init_cfg = MAE_INIT
        super().init_weights()
        self.pos_embed.data.copy_(
            build_2d_sincos_position_embedding(
                self.grid, self.embed_dims, cls_token=True))
        weight = self.patch_embed.projection.weight
        nn.init.xavier_uniform_(weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=.02)

    def forward(self,
                x: torch.Tensor,
                mask: Optional[torch.Tensor] = None
                ) -> Tuple[torch.Tensor, ...]:
        """Encode whole images, or their visible patches.

        Args:
            x (torch.Tensor): Images, (N, C, H, W), normalised.
            mask (torch.Tensor, optional): Bool, (N, L), True = removed, see
                :meth:`generate_mask`. Defaults to None, the whole image.

        Returns:
            tuple: Without a mask, what ``VisionTransformer`` returns for
            ``out_indices`` and ``out_type``. With one,

            - ``z_v`` (N, 1 + V, D): class token and visible patches, after
              the final norm (where there is one).
            - ``ids_restore`` (N, L): see :func:`split_by_mask`.
        """
        if mask is None:
            return super().forward(x)
        ids_keep, ids_restore = split_by_mask(mask)
        return self.encode(self.embed(x, ids_keep)), ids_restore

    def embed(self,
              x: torch.Tensor,
              ids_keep: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Embed patches and add positions: x_v + p_v.

        Args:
            x (torch.Tensor): Images, (N, C, H, W).
            ids_keep (torch.Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            torch.Tensor: Embedded tokens, (N, 1 + V, D), class token first.

        Raises:
            ValueError: If the images are not of the model's size or channels.
        """
        check_images(x, self.in_channels, self.img_size)
        # x_v, (N, V, D): the convolution, of the visible patches alone
        x = cut_patches(x, self.patch_size, ids_keep)
        convolution = self.patch_embed.projection
        x = F.linear(x, convolution.weight.flatten(1), convolution.bias)
        if self.patch_embed.norm is not None:
            x = self.patch_embed.norm(x)
        # p_v; the first position is the class token's
        positions = self.pos_embed[:, 1:]
        if ids_keep is not None:
            positions = positions[0][ids_keep]
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat(
            [cls_token.expand(x.shape[0], -1, -1), x + positions], dim=1)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the transformer over embedded tokens, (N, T, D) to (N, T, D)."""
        x = self.pre_norm(self.drop_after_pos(tokens))
        for layer in self.layers:
            x = layer(x)
        if self.final_norm:
            x = self.ln1(x)
        return x

    def remove_final_norm(self) -> None:
        """Leave the final norm out from now on."""
        if self.final_norm:
            self.final_norm = False
            del self.ln1


class MomentumTarget(nn.Module):
    r"""Target encoder F_t and target projector, averages of the online ones.

    .. math::
        \theta_t \leftarrow \mu\,\theta_t + (1 - \mu)\,\theta_s

    after each optimizer step, see :meth:`follow`. BatchNorm statistics are
    not averaged: the target runs in training mode and has its own, since it
    sees other images than the online branch.

    Args:
        encoder (nn.Module): The online encoder, of which a copy is made.
        projector (nn.Module): The online projector, of which a copy is made.
        momentum (float): Momentum mu, the share of the old target that an
            update keeps, in (0, 1). Defaults to 0.996.
        with_cls_token (bool): Whether the encoder's class token takes part in
            the target's attention; pooling leaves it out either way. Defaults
            to True, as in the released code.
        final_norm (bool): Whether the target encoder ends in the LayerNorm
            that the online encoder has. Defaults to False, as in the released
            code.
        with_fusion (bool): Whether the fusion layers of a hybrid encoder
            (``CMAEConvViT``) take part in the target, as in the online branch;
            of another encoder nothing is left out. Defaults to True.
        mask_ratio (float): Share of patches removed from the target's input,
            drawn as the online branch's. Defaults to 0, the whole image.
        fixed (bool): Whether the target is meant to stay what it starts as,
            so that nothing need move it. Defaults to False.

    Attributes:
        momentum (float): Momentum mu of the latest or the next update.
        steps (torch.Tensor): Number of updates so far, kept in checkpoints.

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
            check_fusion(self.encoder)
            self.encoder.remove_fusion()
        self.mask_ratio = mask_ratio
        if mask_ratio:
            self.encoder.set_mask_ratio(mask_ratio)
        self.fixed = fixed
        self._handle: Optional[RemovableHandle] = None
        # Plain values: torch.compile guards on them.
        self._watched = not fixed
        self._batches_at_rest = 0

    @property
    def num_extra_tokens(self) -> int:
        """Number K of tokens before the patches' tokens."""
        return self.encoder.num_extra_tokens if self.with_cls_token else 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Project whole images.

        Args:
            images (torch.Tensor): The target view, (N, C, H, W).

        Returns:
            torch.Tensor: Target projections z_t^p, (N, E), without gradient.
        """
        if self._watched and self.training and torch.is_grad_enabled():
            self._warn_if_at_rest()
        with torch.no_grad():
            return self.projector((self.pool(images), ))[0]

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """Make each image's feature, ``z_t = mean_j F_t(x_t)_j``.

        Args:
            images (torch.Tensor): The target view, (N, C, H, W).

        Returns:
            torch.Tensor: Target features, (N, D), without gradient.
        """
        with torch.no_grad():
            ids_keep = None
            if self.mask_ratio:
                mask = self.encoder.generate_mask(len(images), images.device)
                ids_keep = split_by_mask(mask)[0]
            tokens = self.encode(images, ids_keep)
            return tokens[:, self.num_extra_tokens:].mean(dim=1)

    def encode(self,
               images: torch.Tensor,
               ids_keep: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Encode images, ``F_t(x_t)``.

        Args:
            images (torch.Tensor): Images, (N, C, H, W).
            ids_keep (torch.Tensor, optional): The visible patches, (N, V).
                Defaults to None, all.

        Returns:
            torch.Tensor: Tokens, (N, K + V, D), class token first if it takes
            part.
        """
        embedded = self.encoder.embed(images, ids_keep)
        left_out = self.encoder.num_extra_tokens - self.num_extra_tokens
        if left_out:
            embedded = embedded[:, left_out:]
        return self.encoder.encode(embedded)

    def copy_from(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Make every parameter and buffer equal to the online branch's.

        Args:
            encoder (nn.Module): The online encoder.
            projector (nn.Module): The online projector.
        """
        # The target may lack final norm and fusion, and nothing else.
        self.encoder.load_state_dict(encoder.state_dict(), strict=False)
        self.projector.load_state_dict(projector.state_dict())

    @torch.no_grad()
    def update(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Move towards the online branch by one step of the moving average.

        Args:
            encoder (nn.Module): The online encoder.
            projector (nn.Module): The online projector.
        """
        averages, sources = [], []
        for own, online in ((self.encoder, encoder),
                            (self.projector, projector)):
            source = dict(online.named_parameters())
            for name, average in own.named_parameters():
                # Fixed positions are equal in both branches and stay so.
                if source[name].requires_grad:
                    averages.append(local_part(average))
                    sources.append(local_part(source[name]))
        torch._foreach_lerp_(averages, sources, 1 - self.momentum)
        self.steps += 1
        self._watched = False

    def follow(self,
               optimizer: torch.optim.Optimizer,
               encoder: nn.Module,
               projector: nn.Module,
               momentum: Optional[Callable[[int], float]] = None
               ) -> RemovableHandle:
        """Move after each step of the optimizer of the online branch.

        The target stands still while gradients accumulate and when a loss
        scaler skips a step. It follows one optimizer, the latest.

        Args:
            optimizer (torch.optim.Optimizer): What trains the online branch.
            encoder (nn.Module): The online encoder.
            projector (nn.Module): The online projector.
            momentum (Callable, optional): Gives mu for the number of updates
                so far. Defaults to None, :attr:`momentum` throughout.

        Returns:
            RemovableHandle: Its ``remove()`` ends it.

        Raises:
            ValueError: If the target is meant to stay as it is.
        """
        if self.fixed:
            raise ValueError('a target with fixed=True follows no optimizer; '
                             'leave fixed out')
        if self._handle is not None:
            self._handle.remove()
        done = int(self.steps)

        def move(optimizer, args, kwargs) -> None:
            nonlocal done
            # Fused optimizers are called, and do nothing, on inf gradients.
            found_inf = getattr(optimizer, 'found_inf', None)
            if found_inf is not None and found_inf.item():
                return
            if momentum is not None:
                self.momentum = momentum(done)
            self.update(encoder, projector)
            done += 1

        keep_step_hooks(optimizer)
        self._handle = optimizer.register_step_post_hook(move)
        self._watched = False
        return self._handle

    @property
    def is_following(self) -> bool:
        """Whether an optimizer's steps move the target."""
        if self._handle is None:
            return False
        return self._handle.id in (self._handle.hooks_dict_ref() or {})

    def __getstate__(self) -> dict:
        # A copy does not follow what the original follows.
        return dict(self.__dict__, _handle=None)

    def _warn_if_at_rest(self) -> None:
        self._batches_at_rest += 1
        self._watched = self._batches_at_rest < 2
        if not self._watched:
            print_log(
                'CMAE trains, but nothing moves its target: add '
                "custom_hooks=[dict(type='TargetUpdateHook')] to the config, "
                'or call model.target.follow(optimizer, model.backbone, '
                'model.neck.projector) once.',
                logger='current',
                level=logging.WARNING)


@MODELS.register_module()
class CMAE(BaseSelfSupervisor):
    """Contrastive Masked Autoencoder (arXiv 2207.13532).

    The online branch encodes the visible patches of one view, reconstructs
    the removed ones, and completes and projects the image's feature. The
    target branch, a moving average of the online encoder and projector, sees
    the whole of a second view. :meth:`loss` is the paper's Fig. 2 read from
    left to right. The target is moved by ``TargetUpdateHook`` after each
    optimizer step, or by :meth:`MomentumTarget.follow`.

    ``head.contrastive=None`` is the one switch that makes this an MAE: target,
    feature decoder and projector are left out, whatever is set for them.

    Args:
        backbone (dict | nn.Module): The online encoder, ``CMAEViT`` or
            ``CMAEConvViT``.
        neck (dict): Arguments of ``CMAENeck``. What follows from the encoder
            (``embed_dims``, ``num_patches``, ``patch_size``,
            ``in_channels``...) is filled in, and must not be set otherwise.
        head (dict): Arguments of ``CMAEHead``. ``patch_size``,
            ``in_channels`` and the predictor's width are filled in likewise.
        target (dict): Arguments of :class:`MomentumTarget`: ``momentum``
            (0.996), ``with_cls_token`` (True), ``final_norm`` (False),
            ``with_fusion`` (True), ``mask_ratio`` (0), ``fixed`` (False).
            Defaults to the released code's.
        micro_batch (int, optional): Number of images whose activations are
            held at a time; the losses are still those of the whole batch, see
            ``loss_by_micro_batches``. Defaults to None, all.
        data_preprocessor (dict | nn.Module, optional): Defaults to
            mmpretrain's ``SelfSupDataPreprocessor``.
        init_cfg (dict | list, optional): Defaults to None.

    Raises:
        ValueError: If neck or head contradict the encoder or each other, the
            encoder is set up for something else than pre-training, or
            ``micro_batch`` cannot be used.
    """

    def __init__(self,
                 backbone: Union[dict, nn.Module],
                 neck: dict,
                 head: dict,
                 target: dict = dict(),
                 micro_batch: Optional[int] = None,
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        neck, head = complete_parts(backbone, neck, head)
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=preprocessor_cfg(data_preprocessor),
            init_cfg=init_cfg)
        self.target: Optional[MomentumTarget] = None
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
        """Make the target, if there is one, a copy of the online branch."""
        if self.target is not None:
            self.target.copy_from(self.backbone, self.neck.projector)

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
        if self.micro_batch is not None:
            return loss_by_micro_batches(self, x_s, x_t, self.micro_batch)

        # z_v = F_s(x_v + p_v), (N, K + V, D)
        mask = self.backbone.generate_mask(len(x_s), x_s.device)
        z_v, ids_restore = self.backbone(x_s, mask)
        check_gradient(z_v, self.backbone)
        # y' = G_p(z_v, mask tokens); y_s = mean_i G_f(z_v, mask tokens)_i,
        # projected
        pred_pixel, proj_s = self.neck(z_v, ids_restore)

        proj_t = None
        if self.target is not None:
            # z_t^p: the whole second view, without gradient
            proj_t = self.target(x_t)

        # L = L_r + lambda_c * L_c
        return self.head.loss(pred_pixel, x_s, mask, proj_s, proj_t)

    def _split_views(
        self, inputs: Union[torch.Tensor, Sequence[torch.Tensor]]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        views = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
        needed = 1 if self.target is None else 2
        if len(views) < needed:
            raise ValueError(
                'CMAE needs two views of each image, the online and the '
                f'target one, but got {len(views)}; use the PixelShift '
                'transform, or MultiView for two independent crops')
        return views[0], views[-1]

    def extract_feat(self,
                     inputs: Union[torch.Tensor, Sequence[torch.Tensor]],
                     pool: str = 'mean',
                     encoder: str = 'online') -> torch.Tensor:
        """Extract features of whole images, for evaluation.

        Args:
            inputs (torch.Tensor | Sequence[torch.Tensor]): Images,
                (N, C, H, W), normalised; of several views the first is taken.
            pool (str): 'mean' (of the patch tokens), 'cls', or 'none' (all
                tokens, class token first). Defaults to 'mean'.
            encoder (str): 'online' or 'target'. Defaults to 'online'.

        Returns:
            torch.Tensor: Features, (N, D), or (N, K + L, D) for
            ``pool='none'``.

        Raises:
            ValueError: If ``pool`` or ``encoder`` is none of these, or the
                model has no such part.
        """
        check_choice('pool', pool, ('mean', 'cls', 'none'))
        check_choice('encoder', encoder, ('online', 'target'))
        if encoder == 'target' and self.target is None:
            raise ValueError('this model has no target encoder, since '
                             'head.contrastive is None')
        if not isinstance(inputs, torch.Tensor):
            inputs = inputs[0]
        if encoder == 'online':
            tokens = self.backbone(inputs)[-1]
            num_extra = self.backbone.num_extra_tokens
        else:
            tokens = self.target.encode(inputs)
            num_extra = self.target.num_extra_tokens
        if pool == 'none':
            return tokens
        if pool == 'mean':
            return tokens[:, num_extra:].mean(dim=1)
        if not num_extra:
            raise ValueError(
                f'the class token takes no part in the {encoder} encoder; use '
                "pool='mean'")
        return tokens[:, 0]
