"""Pre-trained encoders as modules, from a checkpoint alone."""
import re
from typing import Any, Dict, NamedTuple, Optional

from mmengine.logging import print_log
from torch import Tensor

from ..checkpoints import CheckpointError, load_state, read_checkpoint
from ..checkpoints.encoder import find_encoder
from ..checkpoints.encoder_facts import read_encoder_facts
from ..datasets.image_stats import read_image_stats
from ..image_config import is_plain, settings_of
from ..models import TransferViT
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
            checkpoint, or an MAE encoder under FAIR's or timm's names.
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
    sizes = _read_sizes(state)
    with_cls_token = (
        encoder == 'online' or facts.get('target_with_cls_token', True))
    if not with_cls_token:
        state = dict(state, pos_embed=state['pos_embed'][:, 1:])
        state.pop('cls_token', None)
    side = img_size or sizes.grid * sizes.patch_size
    if side % sizes.patch_size:
        raise CheckpointError(
            f'patches of {sizes.patch_size} pixels do not divide images of '
            f'{side}; choose a multiple of {sizes.patch_size}')
    backbone = TransferViT(
        arch=dict(
            embed_dims=sizes.embed_dims,
            num_layers=sizes.num_layers,
            num_heads=_find_heads(sizes, num_heads, facts),
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
    load_state(
        backbone, state, advice='it is no plain vision transformer',
        most_listed=10)
    print_log(f'{checkpoint} is {kind}; its {encoder} encoder was loaded, '
              'every key matched', logger='current')
    normalisation = _find_normalisation(sizes.in_channels, facts, stats)
    return PretrainedEncoder(backbone, pool, **normalisation).eval()


def _find_normalisation(channels: int, facts: Dict[str, Any],
                        stats: Optional[PathLike]) -> Dict[str, Any]:
    """Find how images are decoded and normalised."""
    if stats is not None:
        known = read_image_stats(stats)
        known['images'] = settings_of(known)
    else:
        known = facts
    found: Dict[str, Any] = {
        k: known[k] for k in ('mean', 'std', 'images') if k in known
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


def _read_sizes(state: Dict[str, Tensor]) -> EncoderSizes:
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
    layers = {int(m[1]) for m in (re.match(r'layers\.(\d+)\.', k)
                                  for k in state) if m}
    return EncoderSizes(
        embed_dims=patches.shape[0],
        num_layers=1 + max(layers),
        feedforward_channels=hidden.shape[0],
        patch_size=patches.shape[-1],
        in_channels=patches.shape[1],
        grid=grid)


def _find_heads(sizes: EncoderSizes, given: Optional[int],
                facts: Dict[str, Any]) -> int:
    """Find the number of heads, which no tensor's shape tells."""
    noted = facts.get('num_heads')
    if given is not None and noted is not None and given != noted:
        raise CheckpointError(
            f'it says that it has {noted} heads, but num_heads={given} was '
            'given; leave num_heads out')
    heads = given if given is not None else noted
    if heads is None:
        known = {
            arch['num_heads']
            for arch in TransferViT.arch_zoo.values()
            if sizes[:3] == (arch['embed_dims'], arch['num_layers'],
                             arch['feedforward_channels'])
        }
        heads = known.pop() if len(known) == 1 else None
    if heads is None:
        raise CheckpointError(
            f'it does not say how many attention heads its encoder has '
            f'({sizes.embed_dims} wide, {sizes.num_layers} layers), and no '
            'named architecture has these sizes; give num_heads=')
    if sizes.embed_dims % heads:
        raise CheckpointError(f'num_heads={heads} does not divide the width '
                              f'of {sizes.embed_dims}')
    return heads
