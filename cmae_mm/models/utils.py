"""Shared parts of encoders, decoders and heads."""
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models.utils import (MultiheadAttention,
                                     build_2d_sincos_position_embedding)
from mmpretrain.registry import WEIGHT_INITIALIZERS
from packaging.version import Version
from torch import Tensor, nn
from torch.optim import Optimizer

from ..datasets.decode import MAX_CHANNELS
from ..dependencies import name_of
from ..image_size import ImageSize, Pair, divide, format_size

Config = dict[str, Any]
# MAE's initialisation of encoder and decoders.
MAE_INIT: list[Config] = [
    dict(type='Xavier', distribution='uniform', layer='Linear'),
    dict(type='Constant', val=1, bias=0, layer='LayerNorm')
]
# Small enough for a few CPU cores.
_MINI = dict(
    embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512)
_AMBIGUOUS = ('s', 'small')
# The released code's projector and predictor: two linear layers, BatchNorm
# between them, a bias on the first one only.
_MLP = dict(
    type='mmpretrain.NonLinearNeck',
    hid_channels=1536,
    out_channels=256,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='BN1d', eps=1e-6))
_TORCH = Version(torch.__version__).release
_PATCHED_OPTIMIZERS: set[type] = set()


# Architectures


def with_mini(zoo: dict[str, Config], **more: Any) -> dict[str, Config]:
    """Add 'mini' to mmpretrain's named architectures.

    mmpretrain's 'small', 768 wide with 8 layers, is removed. In the literature
    ViT-S is 384 wide with 12 layers, mmpretrain's 'deit-small'.

    Args:
        zoo (dict[str, dict]): mmpretrain's architectures.
        **more: Further settings of 'mini'.

    Returns:
        dict[str, dict]: The sizes by name.
    """
    zoo = {k: v for k, v in zoo.items() if k not in _AMBIGUOUS}
    return zoo | dict(mini=dict(_MINI, **more))


def check_arch(arch: str | Config, zoo: dict[str, Config]) -> None:
    """Check the name or the sizes of an architecture.

    Raises:
        ValueError: If the name is unknown, or a size is missing.
    """
    if isinstance(arch, str):
        if arch.lower() in _AMBIGUOUS and 'deit-small' in zoo:
            raise ValueError(
                f"backbone.arch={arch!r} is ambiguous; use 'deit-small' for "
                'the ViT-S of the literature, 384 wide with 12 layers, or a '
                "dict of sizes for mmpretrain's 'small', 768 wide with 8 "
                'layers')
        if arch.lower() not in zoo:
            raise ValueError(
                f'backbone.arch must be one of {", ".join(sorted(zoo))}, or a '
                f'dict of sizes, but got {arch!r}')
        return
    needed = list(next(iter(zoo.values())))
    missing = [k for k in needed if k not in arch]
    if missing:
        raise ValueError(
            f'backbone.arch lacks {", ".join(missing)}; give all of '
            f'{", ".join(needed)}, or a name, for instance \'base\'')


def check_in_channels(in_channels: int) -> None:
    """Check the number of image channels of an encoder.

    Raises:
        ValueError: If it is not from 1 to 64.
    """
    if not isinstance(in_channels, int) or not 1 <= in_channels <= (
            MAX_CHANNELS):
        raise ValueError(
            'backbone.in_channels must be a whole number from 1 to '
            f'{MAX_CHANNELS}, but got {in_channels!r}')


def set_extra_tokens(encoder: Any, num_class_tokens: int,
                     num_registers: int) -> None:
    """Set the number of class tokens and registers, before it is built.

    Args:
        encoder (VisionTransformer): The encoder; gets ``num_class_tokens``,
            and ``num_extra_tokens``, their sum.
        num_class_tokens (int): Number of class tokens.
        num_registers (int): Number of register tokens.

    Raises:
        ValueError: If a number is out of range.
    """
    for name, value in (('num_class_tokens', num_class_tokens),
                        ('num_registers', num_registers)):
        if not isinstance(value, int) or not 0 <= value <= 16:
            raise ValueError(
                f'backbone.{name} must be a whole number from 0 to 16, but '
                f'got {value!r}')
    encoder.num_class_tokens = num_class_tokens
    encoder.num_extra_tokens = num_class_tokens + num_registers


def add_extra_tokens(encoder: Any) -> None:
    """Widen the class token for all extra tokens, to (1, K, D)."""
    if not encoder.with_cls_token:
        encoder.num_class_tokens = 0
    elif encoder.num_extra_tokens > 1:
        encoder.cls_token = nn.Parameter(encoder.cls_token.new_zeros(
            1, encoder.num_extra_tokens, encoder.embed_dims))


def check_blocks(img_size: ImageSize, patch_size: int,
                 mask_block: int) -> None:
    """Check that patches divide the image and masking blocks the patches.

    Raises:
        ValueError: If one does not.
    """
    rows, columns = divide(img_size, patch_size)
    if mask_block < 1 or rows % mask_block or columns % mask_block:
        raise ValueError(
            f'mask_block={mask_block} does not divide the {rows}x{columns} '
            f'grid of patches (img_size={format_size(img_size)}, patch_size='
            f'{patch_size}); use mask_block=1, or an image size that is a '
            f'multiple of {patch_size * max(mask_block, 1)}')


def check_width(width: int, num_heads: int, name: str) -> None:
    """Check the width of a transformer.

    Args:
        width (int): Width D of the transformer.
        num_heads (int): Number of attention heads.
        name (str): Prefix of the setting's name, for the error.

    Raises:
        ValueError: If the width is not a multiple of the number of heads and
            of 4, which 2-D sine-cosine positions need.
    """
    if width % 4 or num_heads < 1 or width % num_heads:
        raise ValueError(
            f'{name}num_heads={num_heads} does not divide the width {width}, '
            'or the width is not a multiple of 4, which sine-cosine positions '
            'need; change one of the two')


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that an argument is one of its choices.

    Raises:
        ValueError: If it is invalid.
    """
    if value not in choices:
        raise ValueError(
            f'{name} must be one of {choices}, but got {value!r}')


def check_momentum(momentum: float) -> None:
    """Check the momentum mu of a moving average.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < momentum < 1:
        raise ValueError(
            'momentum, the weight of the old target in an update, must be '
            f'between 0 and 1, but got {momentum}')


class PlainAttention(MultiheadAttention):
    """mmpretrain's attention without dropout and layer scale."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend, (N, T, D) to (N, T, D)."""
        count, length, width = x.shape
        qkv = self.qkv(x.flatten(0, 1)).view(
            count, length, 3, self.num_heads, self.head_dims)
        # unbind has one kernel in the backward pass, indexing has eight.
        x = self.scaled_dot_product_attention(
            *qkv.permute(2, 0, 3, 1, 4).unbind())
        x = x.transpose(1, 2).reshape(-1, width)
        return self.proj(x).view(count, length, width)


class PlainFFN(FFN):
    """mmcv's FFN of two layers without dropout and layer scale."""

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Add the output to the identity, x by default, (N, T, D)."""
        (fc1, act, _), fc2, _ = self.layers
        out = fc2(act(fc1(x.flatten(0, -2)))).view(x.shape)
        return (x if identity is None else identity) + out


def simplify_layers(module: nn.Module) -> None:
    """Let a transformer's layers call nothing that does nothing, in place.

    Results do not change. mmpretrain calls dropout of rate 0, identities and
    checks of argument names in each layer, which costs the host more time
    than the kernels. Drop rates become Python numbers: they are numpy's, which
    torch.compile treats as tensors, so each layer would break the graph.

    Args:
        module (nn.Module): An encoder or a decoder.
    """
    for layer in module.modules():
        if hasattr(layer, 'drop_prob'):
            layer.drop_prob = float(layer.drop_prob)
    for layer in module.modules():
        plain = {MultiheadAttention: PlainAttention, FFN: PlainFFN}.get(
            type(layer))
        if plain is None or getattr(layer, 'attn_drop', False) or (
                getattr(layer, 'num_fcs', 2) != 2):
            continue
        # Not with dropout, drop path or layer scale.
        if all((isinstance(m, nn.Linear) or not m._parameters)
               and not getattr(m, 'p', 0) and not getattr(m, 'drop_prob', 0)
               for m in layer.modules()):
            layer.__class__ = plain


def cut_patches(images: Tensor, patch_size: int,
                ids: Tensor | None = None) -> Tensor:
    """Cut images into patches.

    Args:
        images (Tensor): Images, (N, C, H, W), whose sides the patch divides.
        patch_size (int): Side P of a patch in pixels.
        ids (Tensor, optional): Row-major indices of patches, (N, V). Defaults
            to None, all L patches.

    Returns:
        Tensor: Patches, (N, V, C*P*P), with the pixels in the order of a
        convolution's weight: by channel, row and column.
    """
    count, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(
        count, channels, rows, patch_size, columns, patch_size)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(count * rows * columns, -1)
    if ids is not None:
        # Indices over all images: faster than a gather of rows.
        first = torch.arange(count, device=ids.device) * (rows * columns)
        x = x.index_select(0, (ids + first[:, None]).flatten())
    return x.view(count, -1, x.shape[-1])


# Initialisation


def is_pretrained(init_cfg: Any) -> bool:
    """Whether an ``init_cfg`` names a checkpoint."""
    return isinstance(init_cfg, dict) and init_cfg['type'] == 'Pretrained'


def start_from_encoder(module: nn.Module) -> bool:
    """Load the encoder of a backbone's ``init_cfg``.

    Args:
        module (nn.Module): The backbone. An ``init_cfg`` without file is set
            to None.

    Returns:
        bool: Whether an encoder was loaded. If not, the backbone must be
        initialised.

    Raises:
        CheckpointError: If the checkpoint is missing or does not fit.
    """
    if not is_pretrained(module.init_cfg):
        return False
    settings = {k: v for k, v in module.init_cfg.items() if k != 'type'}
    # By name, since this package does not import `checkpoints`.
    initializer = WEIGHT_INITIALIZERS.get('PretrainedEncoder')
    if initializer(**settings)(module):
        module._is_init = True
        return True
    module.init_cfg = None
    return False


@torch.no_grad()
def set_sincos_positions(positions: Tensor, grid: Pair) -> None:
    """Set position embeddings to 2-D sines and cosines, in place.

    The first half of the channels encodes the row, the second the column.
    Positions of extra tokens are zero.

    Args:
        positions (Tensor): (1, K + L, D).
        grid (tuple[int, int]): Height and width in patches.
    """
    # mmpretrain numbers patches column by column.
    patches = build_2d_sincos_position_embedding(
        grid[::-1], positions.shape[-1])
    positions.zero_()
    positions[:, positions.shape[1] - patches.shape[1]:] = patches


class PretrainedMixin(nn.Module):
    """Mixin of backbones initialised from an encoder, with frozen stages."""

    def init_weights(self) -> None:
        """Load the encoder of ``init_cfg``, or initialise as the base class.

        Raises:
            CheckpointError: If the checkpoint is missing or does not fit.
        """
        if not start_from_encoder(self):
            super().init_weights()

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self


class MAEInitMixin(PretrainedMixin):
    """Mixin of encoders with MAE's initialisation."""

    init_cfg: Any

    def init_weights(self) -> None:
        """Initialise like MAE, or load an encoder completely.

        Xavier-uniform for linear layers and the patch embedding of the
        transformer, LayerNorm at one, sine-cosine positions.
        ``dict(type='Pretrained', checkpoint=..., encoder='online')`` is as in
        ``TransferViT``.

        Raises:
            CheckpointError: If the checkpoint is missing or does not fit.
        """
        if start_from_encoder(self):
            return
        if self.init_cfg is None:
            self.init_cfg = MAE_INIT
        super().init_weights()
        set_sincos_positions(self.pos_embed, self.patch_resolution)
        weight = self.patch_embed.projection.weight
        nn.init.xavier_uniform_(weight.data.flatten(1))
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=.02)


# Configs of parts


def fill_in(cfg: Config, name: str, **sizes: Any) -> Config:
    """Add settings derived from other parts to a config.

    Args:
        cfg (dict): The given settings.
        name (str): Name of the config, for errors.
        **sizes: The derived settings.

    Returns:
        dict: A new config with both.

    Raises:
        ValueError: If the config sets one of them to another value.
    """
    cfg = dict(cfg)
    for key, value in sizes.items():
        if cfg.setdefault(key, value) != value:
            raise ValueError(
                f'{name}.{key}={cfg[key]!r} contradicts the rest of the '
                f'model, which needs {key}={value!r}; remove the setting')
    return cfg


def mlp_cfg(cfg: Config, name: str, **sizes: Any) -> Config:
    """Complete the config of a projector or predictor.

    Args:
        cfg (dict): The given settings. Defaults are those of the released
            code's MLP, D-1536-256 with BatchNorm between the layers, unless
            ``type`` names another neck.
        name (str): Name of the config, for errors.
        **sizes: Settings that follow from other parts.

    Returns:
        dict: Config of a registered neck.

    Raises:
        ValueError: If the config sets one of the sizes to another value, or
            the output width of another neck is missing.
    """
    cfg = fill_in(cfg, name, **sizes)
    kind = name_of(cfg.get('type', 'NonLinearNeck'))
    if kind == 'NonLinearNeck':
        return _MLP | cfg
    if 'out_channels' not in cfg:
        raise ValueError(
            f'{name} is a {kind} with unknown width; set {name}.out_channels')
    return cfg


def complete_configs(encoder: nn.Module, neck: Config,
                     head: Config) -> tuple[Config, Config]:
    """Complete neck and head with sizes of the encoder and the projector.

    With ``head.contrastive=None``, for MAE, the neck has neither feature
    decoder nor projector, regardless of their settings.

    Args:
        encoder (nn.Module): The online encoder.
        neck (dict): Settings of the neck.
        head (dict): Settings of the head.

    Returns:
        tuple[dict, dict]: Configs of neck and head.

    Raises:
        ValueError: If they contradict the encoder or each other.
    """
    if getattr(encoder, 'out_type', 'raw') != 'raw':
        raise ValueError(
            f'backbone.out_type={encoder.out_type!r} is for classifiers and '
            'dense tasks, but pre-training decodes all tokens; remove '
            'out_type')
    patches = dict(
        patch_size=encoder.patch_size, in_channels=encoder.in_channels)
    neck = fill_in(
        dict(type='mmpretrain.CMAENeck') | dict(neck),
        'neck',
        embed_dims=encoder.embed_dims,
        num_patches=encoder.num_patches,
        grid=encoder.patch_resolution,
        num_extra_tokens=encoder.num_extra_tokens,
        **patches)
    head = fill_in(
        dict(type='mmpretrain.CMAEHead') | dict(head), 'head', **patches)
    if head.get('contrastive') is None:
        return neck | dict(projector=None), head
    if neck.setdefault('projector', {}) is None:
        raise ValueError(
            'neck.projector=None removes the projector of the contrastive '
            'branch; set head.contrastive=None as well, for MAE, or remove '
            'neck.projector')
    neck['projector'] = mlp_cfg(
        neck['projector'], 'neck.projector', in_channels=encoder.embed_dims)
    width = neck['projector']['out_channels']
    contrastive = dict(head['contrastive'])
    contrastive['predictor'] = mlp_cfg(
        contrastive.get('predictor', {}),
        'head.contrastive.predictor',
        in_channels=width,
        out_channels=width)
    return neck, head | dict(contrastive=contrastive)


# Sharded parameters


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, without a copy.

    Args:
        tensor (Tensor): A ``DTensor`` of ``fully_shard``, or a plain tensor.

    Returns:
        Tensor: A plain tensor in the same memory, without rows where there
        are more ranks than rows.
    """
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are sharded."""
    first = next(model.parameters(), None)
    return hasattr(first, 'to_local')


# Faults of torch 2.1 and 2.2


def gelu(x: Tensor) -> Tensor:
    """Compute GELU, with correct gradients for any memory layout.

    On CPUs torch 2.1 reads a transposed gradient beyond its memory.
    """
    out = F.gelu(x)
    if _TORCH < (2, 2) and out.requires_grad and out.device.type == 'cpu':
        out.register_hook(Tensor.contiguous)
    return out


def keep_step_hooks(optimizer: Optimizer) -> None:
    """Keep the step hooks of an optimizer when something is compiled.

    At the first ``torch.compile`` of a process, torch 2.1 and 2.2 remove the
    code that runs these hooks from all optimizers.
    """
    if _TORCH >= (2, 3):
        return
    from torch._dynamo.eval_frame import TorchPatcher
    TorchPatcher.patch()  # done by the first compilation, once per process
    kind: Any = next(
        c for c in type(optimizer).__mro__ if 'step' in vars(c))
    if kind.__module__.startswith('torch.optim.') and (
            kind not in _PATCHED_OPTIMIZERS):
        kind.step = Optimizer.profile_hook_step(kind.step)
        kind.step.hooked = True
        _PATCHED_OPTIMIZERS.add(kind)
