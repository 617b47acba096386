"""Pre-trained encoders as modules, from a checkpoint alone."""
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from mmengine.logging import print_log

from ..checkpoints import CheckpointError, load_state, read_checkpoint
from ..checkpoints.encoder import find_encoder
from ..checkpoints.encoder_facts import read_encoder_facts
from ..checkpoints.families import is_hybrid
from ..checkpoints.files import StateDict
from ..datasets.stats import read_image_stats
from ..image_config import is_plain, settings_of, value_range_of
from ..models import ConvViT, TransferConvViT, TransferViT
from .checks import (
    ENCODERS,
    POOLS,
    PathLike,
    check_checkpoint,
    check_choice,
    check_stats,
    check_whole_number,
)
from .pretrained_encoder import PretrainedEncoder


class EncoderSizes(NamedTuple):
    """Sizes of a vision transformer, as its tensors say them."""

    embed_dims: int
    num_layers: int
    feedforward_channels: int
    patch_size: int
    in_channels: int
    grid: int


class HybridSizes(NamedTuple):
    """Sizes of a hybrid encoder, as its tensors say them, of each stage."""

    embed_dims: List[int]
    depths: List[int]
    patch_sizes: List[int]
    in_channels: int
    mlp_ratio: float
    kernel_size: int
    grid: int


def load_encoder(checkpoint: PathLike,
                 encoder: str = 'online',
                 *,
                 pool: str = 'mean',
                 img_size: Optional[int] = None,
                 num_heads: Optional[int] = None,
                 stats: Optional[PathLike] = None) -> PretrainedEncoder:
    """Load a pre-trained encoder; no config is needed.

    Example::

        import cmae_mm
        encoder = cmae_mm.load_encoder('epoch_300.pth')
        image = encoder.preprocess('photo.jpg')   # (3, 224, 224), normalised
        feature = encoder(image[None])            # (1, 768)

    Sizes are read from the tensors. Heads, normalisation and how images are
    decoded are read from what the checkpoint says about itself; where it says
    nothing, the heads are those of the named architecture of the same sizes,
    and colours of 8 bits are normalised by ImageNet's mean and deviation.

    Args:
        checkpoint (str | PathLike): A pre-training checkpoint or an exported
            backbone of this project, a fine-tuned classifier, a released CMAE
            checkpoint, an MAE encoder under FAIR's or timm's names, or a
            ConvMAE checkpoint.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        pool (str): What the encoder gives for an image: 'mean' of its patch
            tokens, 'cls', the class token, or 'patch', all patch tokens.
            Defaults to 'mean'.
        img_size (int, optional): Side of the images in pixels that the
            positions are resampled to. Defaults to the checkpoint's.
        num_heads (int, optional): Number of attention heads, for a checkpoint
            that does not say it and is of no named architecture.
        stats (str | PathLike, optional): What ``cmae stats`` wrote about the
            images, for a checkpoint that does not say how they are decoded
            and normalised; taken before what it says. Defaults to None.

    Returns:
        PretrainedEncoder: In evaluation mode, on the CPU.

    Raises:
        ArgumentError: If an argument is none of what is allowed.
        CheckpointError: If the file cannot be read, or holds no such encoder.
    """
    check_choice('encoder', encoder, ENCODERS)
    check_choice('pool', pool, POOLS)
    check_whole_number('img_size', img_size, 1)
    check_whole_number('num_heads', num_heads, 1)
    check_checkpoint(checkpoint)
    check_stats(stats)
    try:
        return _load(str(checkpoint), encoder, pool, img_size, num_heads,
                     stats)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error


def _load(checkpoint: str, encoder: str, pool: str, img_size: Optional[int],
          num_heads: Optional[int],
          stats: Optional[PathLike]) -> PretrainedEncoder:
    state, meta = read_checkpoint(checkpoint)
    state, kind = find_encoder(state, encoder)[:2]
    facts = read_encoder_facts(meta)
    build = _build_hybrid if is_hybrid(state) else _build_plain
    backbone, state = build(state, encoder, img_size, num_heads, facts)
    load_state(
        backbone, state, advice='it is no vision transformer of this project',
        most_listed=10)
    print_log(f'{checkpoint} is {kind}; its {encoder} encoder was loaded, '
              'every key matched', logger='current')
    # of a hybrid the first stage's
    channels: int = getattr(backbone, 'in_channels', None) or (
        backbone.patch_embed.projection.in_channels)
    normalisation = _find_normalisation(channels, facts, stats)
    return PretrainedEncoder(backbone, pool, **normalisation).eval()


def _find_normalisation(channels: int, facts: Dict[str, Any],
                        stats: Optional[PathLike]) -> Dict[str, Any]:
    """Find how images are decoded, normalised and shown."""
    if stats is not None:
        known = read_image_stats(stats)
        known['images'] = settings_of(known)
        known['value_range'] = value_range_of(known)
    else:
        known = facts
    found: Dict[str, Any] = {
        k: known[k] for k in ('mean', 'std', 'images', 'value_range')
        if k in known
    }
    images = found.get('images') or dict(
        channels=len(found.get('mean') or 'rgb'))
    lacking = 'mean' not in found and not is_plain(images)
    if lacking or images['channels'] != channels:
        if stats is None and 'mean' not in facts:
            raise CheckpointError(
                f'its encoder takes images of {channels} channel(s), and it '
                'does not say how these are normalised; give stats= '
                '(--stats), the file that `cmae stats` writes')
        raise CheckpointError(
            f'its encoder takes images of {channels} channel(s), but '
            f'{stats or "its own record"} is about images of '
            f'{images["channels"]}')
    found['images'] = None if is_plain(images) else images
    return found


def _build_plain(state: StateDict, encoder: str, img_size: Optional[int],
                 num_heads: Optional[int], facts: Dict[str, Any]
                 ) -> Tuple[TransferViT, StateDict]:
    """Build the plain ViT that takes a state, and give what it takes."""
    sizes = _read_sizes(state)
    with_cls_token = (
        encoder == 'online' or facts.get('target_with_cls_token', True))
    if not with_cls_token:
        state = dict(state, pos_embed=state['pos_embed'][:, 1:])
        state.pop('cls_token', None)
    side = _image_side(img_size, sizes.patch_size, sizes.grid)
    backbone = TransferViT(
        arch=dict(
            embed_dims=sizes.embed_dims,
            num_layers=sizes.num_layers,
            num_heads=_find_heads(
                sizes.embed_dims, sizes.num_layers, num_heads, facts, [
                    a['num_heads'] for a in TransferViT.arch_zoo.values()
                    if sizes[:3] == (a['embed_dims'], a['num_layers'],
                                     a['feedforward_channels'])
                ]),
            feedforward_channels=sizes.feedforward_channels),
        img_size=side,
        patch_size=sizes.patch_size,
        in_channels=sizes.in_channels,
        qkv_bias='layers.0.attn.qkv.bias' in state,
        final_norm='ln1.weight' in state,
        with_cls_token=with_cls_token,
        # with the norm of pooled features that a classifier has
        out_type='avg_featmap' if 'ln2.weight' in state else 'raw')
    backbone.out_type = 'raw'
    return backbone, state


def _build_hybrid(state: StateDict, encoder: str, img_size: Optional[int],
                  num_heads: Optional[int], facts: Dict[str, Any]
                  ) -> Tuple[TransferConvViT, StateDict]:
    """Build the hybrid encoder that takes a state, and give that."""
    sizes = _read_hybrid_sizes(state)
    named = [
        a['num_heads'] for a in ConvViT.arch_zoo.values()
        if [a['embed_dims'], a['depths']] == list(sizes[:2])
    ]
    backbone = TransferConvViT(
        arch=dict(
            embed_dims=sizes.embed_dims,
            depths=sizes.depths,
            num_heads=_find_heads(sizes.embed_dims[-1], sizes.depths[-1],
                                  num_heads, facts, named)),
        img_size=_image_side(
            img_size, math.prod(sizes.patch_sizes), sizes.grid),
        patch_sizes=sizes.patch_sizes,
        in_channels=sizes.in_channels,
        mlp_ratio=sizes.mlp_ratio,
        kernel_size=sizes.kernel_size,
        qkv_bias='layers.0.attn.qkv.bias' in state,
        with_fusion='fusions.0.weight' in state,
        final_norm='ln1.weight' in state,
        # with the norm of pooled features that a classifier has
        out_type='avg_featmap' if 'ln2.weight' in state else 'raw')
    backbone.out_type = 'raw'
    return backbone, state


def _image_side(given: Optional[int], patch_size: int, grid: int) -> int:
    """Give the side of images in pixels, which patches must divide."""
    side = given or grid * patch_size
    if side % patch_size:
        raise CheckpointError(
            f'patches of {patch_size} pixels do not divide images of '
            f'{side}; choose a multiple of {patch_size}')
    return side


def _read_sizes(state: StateDict) -> EncoderSizes:
    """Read an encoder's sizes from its tensors."""
    positions = state.get('pos_embed')
    patches = state.get('patch_embed.projection.weight')
    hidden = state.get('layers.0.ffn.layers.0.0.weight')
    if (positions is None or patches is None or hidden is None
            or positions.dim() != 3 or patches.dim() != 4):
        raise CheckpointError(
            'its encoder is no plain vision transformer with a class token; '
            'build it by its config')
    grid = round((positions.shape[1] - 1)**.5)
    if grid * grid + 1 != positions.shape[1]:
        raise CheckpointError(
            f'its {positions.shape[1]} positions are not those of a class '
            'token and a square grid of patches')
    return EncoderSizes(
        embed_dims=patches.shape[0],
        num_layers=_count(state, 'layers'),
        feedforward_channels=hidden.shape[0],
        patch_size=patches.shape[-1],
        in_channels=patches.shape[1],
        grid=grid)


def _read_hybrid_sizes(state: StateDict) -> HybridSizes:
    """Read a hybrid encoder's sizes from its tensors."""
    stages = ('conv_stages.0.', 'conv_stages.1.', '')
    try:
        embeds = [state[f'{s}patch_embed.projection.weight'] for s in stages]
        kernel = state['conv_stages.0.blocks.0.depthwise.weight']
        hidden = state['layers.0.ffn.layers.0.0.weight']
        length = state['pos_embed'].shape[1]
    except KeyError as error:
        raise CheckpointError(
            f'its hybrid encoder lacks {error}; build it by its config'
        ) from None
    grid = round(length**.5)
    if grid * grid != length:
        raise CheckpointError(f'its {length} positions are not those of a '
                              'square grid of patches')
    dims = [e.shape[0] for e in embeds]
    return HybridSizes(
        embed_dims=dims,
        depths=[
            *(_count(state, f'{s}blocks') for s in stages[:2]),
            _count(state, 'layers')
        ],
        patch_sizes=[e.shape[-1] for e in embeds],
        in_channels=embeds[0].shape[1],
        mlp_ratio=hidden.shape[0] / dims[-1],
        kernel_size=kernel.shape[-1],
        grid=grid)


def _count(state: StateDict, name: str) -> int:
    """Count the blocks or layers of a name."""
    found = (re.match(rf'{re.escape(name)}\.(\d+)\.', k) for k in state)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def _find_heads(width: int, layers: int, given: Optional[int],
                facts: Dict[str, Any], named: List[int]) -> int:
    """Find the number of heads, which no tensor's shape tells.

    ``named`` are those of the named architectures of the same sizes.
    """
    noted = facts.get('num_heads')
    if given is not None and noted is not None and given != noted:
        raise CheckpointError(
            f'it says that it has {noted} heads, but num_heads={given} was '
            'given; leave num_heads out')
    heads = given if given is not None else noted
    if heads is None:
        known = set(named)
        heads = known.pop() if len(known) == 1 else None
    if heads is None:
        raise CheckpointError(
            f'it does not say how many attention heads its encoder has '
            f'({width} wide, {layers} layers), and no '
            'named architecture has these sizes; give num_heads=')
    if width % heads:
        raise CheckpointError(f'num_heads={heads} does not divide the width '
                              f'of {width}')
    return heads
