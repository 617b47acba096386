"""Pre-trained encoders as modules, from a checkpoint alone."""
from typing import Any, Dict, Literal, Mapping, Optional

from mmengine.logging import MMLogger, print_log
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
from ..config import ConfigError, load_config, remember
from ..datasets.stats import read_image_stats
from ..image_config import (
    image_settings,
    is_plain,
    settings_of,
    value_range_of,
)
from ..models.backbones import convvit, vit  # noqa: F401  # registers them
from .arguments import Checkpoint, Encoder, PathLike, Size, Stats, command
from .pretrained_encoder import MEAN, PretrainedEncoder


@command()
def load_encoder(checkpoint: Checkpoint,
                 encoder: Encoder = 'online',
                 *,
                 pool: Literal['mean', 'cls', 'patch'] = 'mean',
                 img_size: Optional[Size] = None,
                 num_heads: Optional[Size] = None,
                 stats: Optional[Stats] = None) -> PretrainedEncoder:
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
            backbone of this project, a fine-tuned model, a released CMAE
            checkpoint, an encoder under FAIR's, timm's or Hugging Face's
            names, a folder of transformers or timm, or a ConvMAE checkpoint.
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
    loaded = checkpoints.load_encoder(
        str(checkpoint), encoder, img_size, num_heads)
    print_log('\n'.join(loaded.lines), logger='current')
    with naming(checkpoint):
        return with_preprocessing(loaded, pool, stats)


def load_encoder_by_config(config: PathLike,
                           checkpoint: PathLike,
                           encoder: str = 'online',
                           *,
                           pool: str = 'mean',
                           img_size: Optional[int] = None,
                           cfg_options: Any = ()) -> PretrainedEncoder:
    """Build the model of a config, and load the encoder of a checkpoint.

    Args:
        config (str | PathLike): A pre-training config, or one of another
            self-supervised method on a ``VisionTransformer``.
        checkpoint (str | PathLike): See :func:`load_encoder`; or 'random' for
            random weights by the config's seed.
        encoder (str): See :func:`load_encoder`. Defaults to 'online'.
        pool (str): See :func:`load_encoder`. Defaults to 'mean'.
        img_size (int, optional): See :func:`load_encoder`.
        cfg_options (Mapping | Sequence[str]): Overrides of the config.
            Defaults to none.

    Returns:
        PretrainedEncoder: In evaluation mode, on the CPU.

    Raises:
        ConfigError: If the config is none of pre-training.
        CheckpointError: If the checkpoint does not fit the config's model.
    """
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed
    from mmpretrain.models import BaseSelfSupervisor, VisionTransformer
    from mmpretrain.registry import MODELS
    cfg = load_config(str(config), cfg_options)
    remember(cfg, cfg_options)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None:
        set_random_seed(seed)
    settings = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(settings)
    if not isinstance(model, BaseSelfSupervisor) or not isinstance(
            model.backbone, VisionTransformer):
        raise ConfigError(
            'the config must be one of pre-training, with a model of type '
            "'CMAE' or a self-supervised method of mmpretrain's on a "
            f'VisionTransformer, but the model of {config} is a '
            f'{type(model).__name__}')
    branch, encoder = encoder, 'target' if encoder == 'target' else 'online'
    part = select_encoder(model, encoder)
    if checkpoint == checkpoints.RANDOM:
        _initialise(model)
    else:
        checkpoints.load_encoder_into(part, str(checkpoint), branch)
    found = encoder_of(model, encoder, img_size, image_settings(cfg), pool)
    short_side = (cfg.get('evaluation') or {}).get('short_side')
    if short_side is not None:
        found.centre_crop.short_side = short_side
    return found


def _initialise(model: nn.Module) -> None:
    """Initialise weights, without a line in the log for each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def encoder_of(model: nn.Module,
               encoder: str = 'online',
               img_size: Optional[int] = None,
               images: Optional[Mapping[str, Any]] = None,
               pool: str = 'mean') -> PretrainedEncoder:
    """Take the encoder out of a model that was loaded by its config.

    Args:
        model (CMAE | FrozenViT | ImageClassifier): The model.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        img_size (int, optional): See :func:`load_encoder`. Defaults to the
            model's.
        images (Mapping[str, Any], optional): How images are decoded, arguments
            of ``LoadImage``. Defaults to None, colours of 8 bits.
        pool (str): See :func:`load_encoder`. Defaults to 'mean'.

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
        build_encoder(found, facts, encoder, img_size), pool)


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
    found = PretrainedEncoder(backbone, pool, **normalisation).eval()
    if 'crop_pct' in loaded.facts:
        found.centre_crop.short_side = round(
            found.img_size / loaded.facts['crop_pct'])
    return found


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
