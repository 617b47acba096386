"""Pre-trained encoders as modules, from a checkpoint alone."""
from typing import Any, Dict, Mapping, Optional

from mmengine.logging import print_log
from torch import nn

from .. import checkpoints
from ..checkpoints import (
    CheckpointError,
    LoadedEncoder,
    build_encoder,
    encoder_facts,
    naming,
    read_encoder_facts,
)
from ..checkpoints.export import select_encoder
from ..checkpoints.layouts import FoundEncoder
from ..datasets.stats import read_image_stats
from ..image_config import is_plain, settings_of, value_range_of
from .checks import (
    ENCODERS,
    POOLS,
    PathLike,
    check_checkpoint,
    check_choice,
    check_stats,
    check_whole_number,
)
from .pretrained_encoder import MEAN, PretrainedEncoder


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
        encoder (str): 'online' or 'target'; of a DINO or iBOT checkpoint
            'teacher' or 'student', 'online' is the teacher. Defaults to
            'online'.
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
    check_choice('encoder', encoder, (*ENCODERS, 'teacher', 'student'))
    check_choice('pool', pool, POOLS)
    check_whole_number('img_size', img_size, 1)
    check_whole_number('num_heads', num_heads, 1)
    check_checkpoint(checkpoint)
    check_stats(stats)
    loaded = checkpoints.load_encoder(
        str(checkpoint), encoder, img_size, num_heads)
    print_log('\n'.join(loaded.lines), logger='current')
    with naming(checkpoint):
        return with_preprocessing(loaded, pool, stats)


def encoder_of(model: nn.Module,
               encoder: str = 'online',
               img_size: Optional[int] = None,
               images: Optional[Mapping[str, Any]] = None
               ) -> PretrainedEncoder:
    """Take the encoder out of a model that was loaded by its config.

    Args:
        model (CMAE | FrozenViT | ImageClassifier): The model.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        img_size (int, optional): See :func:`load_encoder`. Defaults to the
            model's.
        images (Mapping[str, Any], optional): How images are decoded, arguments
            of ``LoadImage``. Defaults to None, colours of 8 bits.

    Returns:
        PretrainedEncoder: In evaluation mode, on the CPU.

    Raises:
        CheckpointError: If the model has no such encoder.
    """
    state = select_encoder(model, encoder).state_dict()
    state.pop('mask_token', None)
    facts = read_encoder_facts(encoder_facts(model, images))
    found = FoundEncoder(state, f'a {type(model).__name__}')
    return with_preprocessing(
        build_encoder(found, facts, encoder, img_size))


def with_preprocessing(loaded: LoadedEncoder,
                       pool: str = 'mean',
                       stats: Optional[PathLike] = None) -> PretrainedEncoder:
    """Add what an encoder does to images.

    Args:
        loaded (LoadedEncoder): The encoder.
        pool (str): See :func:`load_encoder`.
        stats (str | PathLike, optional): See :func:`load_encoder`.

    Returns:
        PretrainedEncoder: In evaluation mode.

    Raises:
        CheckpointError: If nothing says how its images are normalised.
    """
    backbone = loaded.backbone
    # of a hybrid the first stage's
    channels: int = getattr(backbone, 'in_channels', None) or (
        backbone.patch_embed.projection.in_channels)
    normalisation = _find_normalisation(channels, loaded.facts, stats)
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
    mean = found.get('mean', MEAN)
    images = found.get('images') or dict(channels=len(mean))
    lacking = 'mean' not in found and not is_plain(images)
    counts = {images['channels'], len(mean)}
    if lacking or counts != {channels}:
        if 'mean' not in found:
            raise CheckpointError(
                f'its encoder takes images of {channels} channel(s), and it '
                'does not say how these are normalised; give stats= '
                '(--stats), the file that `cmae stats` writes')
        raise CheckpointError(
            f'its encoder takes images of {channels} channel(s), but '
            f'{stats or "its own record"} is about images of '
            f'{" or ".join(map(str, sorted(counts - {channels})))}')
    if 'mean' not in found:
        print_log(
            'It does not say how images are normalised: by the mean and '
            'deviation of ImageNet.', logger='current')
    found['images'] = None if is_plain(images) else images
    return found
