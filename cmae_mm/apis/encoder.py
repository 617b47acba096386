"""Pre-trained encoders as modules, loaded without a config."""
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from mmengine.logging import MMLogger, print_log
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import CheckpointError, prefix_errors
from ..checkpoints.encoder_config import encoder_record, read_encoder_record
from ..checkpoints.layouts import FoundEncoder
from ..checkpoints.load import (LoadedEncoder, build_encoder, log_loaded,
                                model_of, select_encoder)
from ..checkpoints.state_dict import grid_of
from ..config import ConfigError
from ..datasets.decode import is_colour, is_plain
from ..evaluation.features import CentreCrop
from ..image_size import ImageSize, Pair, to_pair, to_size
from ..models import backbones, convvit  # noqa: F401  # registers them
from ..models.utils import check_choice
from .arguments import (ArgumentError, Checkpoint, Encoder, ImgSize, PathLike,
                        Size, Stats, command)

# ImageNet's, RGB: those of all packaged configs of ViT-S to ViT-H.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class PretrainedEncoder(nn.Module):
    """Pre-trained vision transformer that computes features of images.

    Returned by :func:`load_encoder`. The transformer is :attr:`backbone`, a
    :class:`~cmae_mm.models.TransferViT` or
    :class:`~cmae_mm.models.TransferConvViT`. Every config can load the state
    dict of this module as an exported backbone.

    Args:
        backbone (TransferViT | TransferConvViT): With ``out_type='raw'``.
        pool (str): Output of ``forward``: 'mean' of the patch tokens, 'cls',
            the class token, or 'patch', all patch tokens. Defaults to 'mean'.
        mean (Sequence[float]): Mean of each of the C channels, in the units of
            the images: colours as RGB in 0 to 255. Defaults to ImageNet's.
        std (Sequence[float]): Standard deviation of each channel, likewise.
        images (Mapping[str, Any], optional): How images are decoded, arguments
            of ``LoadImage``. Defaults to None, colours of 8 bits.
        value_range (Sequence[Sequence[float]], optional): Black and white of
            each channel in pictures. Defaults to 0 and 255 for uint8, and to
            two deviations around the mean for others.

    Attributes:
        embed_dims (int): D, the width of features.
        img_size (int | tuple[int, int]): Side of square images in pixels, or
            (height, width).
        grid (tuple[int, int]): Height and width of an image in patches.
        patch_size (int): Side of a patch in pixels.
        in_channels (int): C, the channels of the images.
        mean (torch.Tensor): (C, 1, 1).
        std (torch.Tensor): (C, 1, 1).
        images (dict[str, Any] | None): How images are decoded.
        centre_crop (CentreCrop): Decodes, resizes and crops images.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    width: Tensor

    def __init__(self,
                 backbone: Any,
                 pool: str = 'mean',
                 mean: Sequence[float] = MEAN,
                 std: Sequence[float] = STD,
                 images: Mapping[str, Any] | None = None,
                 value_range: Sequence[Sequence[float]] | None = None
                 ) -> None:
        super().__init__()
        check_choice('pool', pool, ('mean', 'cls', 'patch'))
        if pool == 'cls' and not backbone.num_class_tokens:
            raise CheckpointError(
                'this encoder does not use a class token, like all hybrid '
                "encoders and some target encoders; use pool='mean'")
        self.backbone = backbone
        self.pool = pool
        self.layers: Sequence[int] = ()
        self.embed_dims: int = backbone.embed_dims
        self.img_size: ImageSize = to_size(backbone.img_size)
        self.grid: Pair = tuple(backbone.patch_resolution)
        # of a hybrid the total stride
        self.patch_size: int = getattr(
            backbone, 'patch_size',
            backbone.patch_embed.projection.kernel_size[0])
        for name, value in (('mean', mean), ('std', std)):
            self.register_buffer(
                name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        self.in_channels: int = len(self.mean)
        self.images = dict(images) if images else None
        self.centre_crop = CentreCrop(self.img_size, images)
        self._set_range(value_range)

    def _set_range(self, value_range: Sequence[Sequence[float]] | None
                   ) -> None:
        """Set the values that pictures show as black and white."""
        self.is_byte_range = value_range is None and (
            self.centre_crop.settings.dtype == 'uint8')
        low, high = self.mean - 2 * self.std, self.mean + 2 * self.std
        if value_range is not None:
            low, high = (torch.tensor(end).float().view(-1, 1, 1)
                         for end in value_range)
        self.register_buffer('low', low, persistent=False)
        self.register_buffer('width', high - low, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images (torch.Tensor): (N, C, H, W), colours as RGB, normalised as
                by :meth:`preprocess` or :meth:`normalize`.

        Returns:
            torch.Tensor: (N, D); for ``pool='patch'`` (N, L, D), row-major
            over the grid of patches. A fine-tuned classifier's mean goes
            through the norm that it was trained with.
        """
        return self.pooled(self.tokens(images), self.pool)

    def pooled(self, tokens: Tensor, pool: str) -> Tensor:
        """Pool tokens.

        Args:
            tokens (torch.Tensor): (N, K + L, D), see :meth:`tokens`.
            pool (str): 'mean', 'cls' or 'patch'.

        Returns:
            torch.Tensor: (N, D), or (N, L, D) for 'patch'.
        """
        if pool == 'cls':
            return tokens[:, :self.backbone.num_class_tokens].mean(dim=1)
        patches = tokens[:, self.backbone.num_extra_tokens:]
        if pool == 'patch':
            return patches
        norm = getattr(self.backbone, 'ln2', None)
        mean = patches.mean(dim=1)
        return mean if norm is None else norm(
            mean.unflatten(1, (-1, self.embed_dims))).flatten(1)

    def tokens(self, images: Tensor) -> Tensor:
        """Compute all tokens, class tokens and registers first.

        Args:
            images (torch.Tensor): (N, C, H, W), colours as RGB, normalised.

        Returns:
            torch.Tensor: (N, K + L, D), after the final norm if there is one
            (target encoders of the released recipe have none). K is 1 if there
            is only a class token. Of n layers (N, K + L, n D), see
            :meth:`use_layers`.

        Raises:
            ValueError: If images are of another size or number of channels,
                no floats, or none.
        """
        self._check(images)
        if not self.layers:
            return self.backbone(images)[-1]
        found: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for number in set(self.layers):
                hooks.enter_context(
                    self.backbone.layers[number - 1].register_forward_hook(
                        partial(_keep_output, found, number)))
            self.backbone(images)
        if self.backbone.final_norm:
            found = {n: self.backbone.ln1(x) for n, x in found.items()}
        return torch.cat([found[n] for n in self.layers], dim=-1)

    def use_layers(self, layers: Sequence[int]) -> None:
        """Compute features of some layers in place of the output.

        The features of several layers are concatenated. The final norm, if
        there is one, is applied to each, as by timm's
        ``get_intermediate_layers(norm=True)``. The fusion layers of a hybrid
        encoder are not used.

        Args:
            layers (Sequence[int]): See :func:`find_layer`. An empty one
                selects the output.

        Raises:
            ArgumentError: If there is no such layer.
        """
        self.layers = [find_layer(self.backbone, n) for n in layers]

    def _check(self, images: Tensor) -> None:
        wanted = (self.in_channels, *to_pair(self.img_size))
        if not isinstance(images, Tensor):
            found = f'a {type(images).__name__}'
        elif (tuple(images.shape[1:]) == wanted and images.shape[0]
              and images.is_floating_point()):
            return
        else:
            found = f'{tuple(images.shape)} of {images.dtype}'
        raise ValueError(
            'the encoder expects normalised float images, (N, {}, {}, {}) '
            'with N of 1 or more, but got {}; use encoder.preprocess to '
            'convert an image, or load_encoder(..., img_size=...) for another '
            'size'.format(*wanted, found))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as in pre-training.

        Args:
            images (torch.Tensor): (..., C, H, W), of any dtype, colours as
                RGB, in 0 to 255 or the units that the encoder was trained
                with.

        Returns:
            torch.Tensor: Of the same shape, float32.
        """
        return (images.float() - self.mean) / self.std

    def encode(self, images: Tensor) -> Tensor:
        """Compute features of images that are not normalised.

        Args:
            images (torch.Tensor): See :meth:`normalize`, on any device.

        Returns:
            torch.Tensor: See :meth:`forward`.
        """
        return self(self.normalize(images.to(self.mean.device)))

    def preprocess(self, image: Any) -> Tensor:
        """Decode, crop and normalise an image for ``forward``.

        The steps are those of all evaluations: decode with the encoder's
        settings and orientation, resize the shorter side to 256/224 of the
        image size, crop the centre, normalise.

        Args:
            image (Any): A file's name, its bytes, an open file, a PIL image
                or an array. An array is (H, W, C), or (H, W) of one channel,
                colours as RGB. A PIL image is rotated by its EXIF data, as
                its file is.

        Returns:
            torch.Tensor: (C, H, W), normalised, on the encoder's device.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If it is not an image, for example a list of images.
            ValueError: If it cannot be decoded, or does not fit the encoder's
                channels and type.
        """
        crop = self.centre_crop(self.centre_crop.read(image, whole=False))
        return self.normalize(crop.to(self.mean.device))


def find_layer(backbone: Any, layer: int) -> int:
    """Return the number of a layer, from 1.

    Args:
        backbone (nn.Module): A vision transformer.
        layer (int): Number from 1, or from -1, the last one, backwards.

    Raises:
        ArgumentError: If there is no such layer.
    """
    depth = len(backbone.layers)
    if layer == 0 or not -depth <= layer <= depth:
        raise ArgumentError(
            f'layer must be from 1 to {depth}, or from -1, the last, to '
            f'{-depth}, but got {layer}')
    return layer if layer > 0 else depth + 1 + layer


def _keep_output(found: dict[int, Tensor], number: int, layer: nn.Module,
                 inputs: Any, output: Tensor) -> None:
    """Keep the output of a layer, as a forward hook."""
    found[number] = output


@command()
def load_encoder(checkpoint: Checkpoint,
                 encoder: Encoder = 'online',
                 *,
                 pool: Literal['mean', 'cls', 'patch'] = 'mean',
                 img_size: ImgSize = None,
                 num_heads: Size | None = None,
                 stats: Stats | None = None) -> PretrainedEncoder:
    """Load a pre-trained encoder; no config is needed.

    Example::

        import cmae_mm
        encoder = cmae_mm.load_encoder('epoch_300.pth')
        image = encoder.preprocess('photo.jpg')   # (3, 224, 224), normalised
        feature = encoder(image[None])            # (1, 768)

    Sizes are read from the tensors; the number of heads, the normalisation and
    the decoding of images from the record in the checkpoint. Without a record,
    the heads are those of the named architecture with the same sizes, and
    8-bit colours are normalised by the mean and standard deviation of
    ImageNet.

    Args:
        checkpoint (str | PathLike): A pre-training checkpoint or an exported
            backbone of this project, a fine-tuned model, a released CMAE
            checkpoint, an encoder under FAIR's, timm's or Hugging Face's
            names, a folder of transformers or timm, or a ConvMAE checkpoint.
        encoder (str): 'online' or 'target'; of a DINO or iBOT checkpoint
            'teacher' or 'student', 'online' is the teacher. Defaults to
            'online'.
        pool (str): Output for an image: 'mean' of its patch tokens, 'cls', the
            class token, or 'patch', all patch tokens. Defaults to 'mean'.
        img_size (int | Sequence[int], optional): Side of square images in
            pixels, or (height, width), that the positions are resampled to.
            Defaults to the checkpoint's.
        num_heads (int, optional): Number of attention heads, for checkpoints
            that do not record it and have no named architecture.
        stats (str | PathLike, optional): File of ``cmae stats``, for
            checkpoints that do not record how images are decoded and
            normalised. Overrides the record. Defaults to None.

    Returns:
        PretrainedEncoder: In evaluation mode, on the CPU.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the file cannot be read, or holds no such encoder.
    """
    loaded = checkpoints.load_encoder(
        str(checkpoint), encoder, img_size, num_heads)
    log_loaded(loaded.lines)
    with prefix_errors(checkpoint):
        return with_preprocessing(loaded, pool, stats)


def load_encoder_by_config(config: PathLike,
                           checkpoint: PathLike,
                           encoder: str = 'online',
                           *,
                           pool: str = 'mean',
                           img_size: ImageSize | None = None,
                           cfg_options: Any = ()) -> PretrainedEncoder:
    """Build the model of a config, and load the encoder of a checkpoint.

    Args:
        config (str | PathLike): A pre-training config, or one of another
            self-supervised method on a ``VisionTransformer``.
        checkpoint (str | PathLike): See :func:`load_encoder`; or 'random' for
            random weights by the config's seed.
        encoder (str): See :func:`load_encoder`. Defaults to 'online'.
        pool (str): See :func:`load_encoder`. Defaults to 'mean'.
        img_size (int | Sequence[int], optional): See :func:`load_encoder`.
        cfg_options (Mapping | Sequence[str]): Overrides of the config.
            Defaults to none.

    Returns:
        PretrainedEncoder: In evaluation mode, on the CPU.

    Raises:
        ConfigError: If the config is not a pre-training config.
        CheckpointError: If the checkpoint does not fit the config's model.
    """
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed
    from mmpretrain.models import BaseSelfSupervisor, VisionTransformer
    from mmpretrain.registry import MODELS

    from ..config import load_config
    from ..image_config import image_settings
    cfg = load_config(str(config), cfg_options)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None:
        set_random_seed(seed)
    model = MODELS.build(model_of(cfg))
    if not isinstance(model, BaseSelfSupervisor) or not isinstance(
            model.backbone, VisionTransformer):
        raise ConfigError(
            'the config must be a pre-training config with a model of type '
            "'CMAE' or a self-supervised method of mmpretrain with a "
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
    """Initialise weights, without a log line for each parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def encoder_of(model: nn.Module,
               encoder: str = 'online',
               img_size: ImageSize | None = None,
               images: Mapping[str, Any] | None = None,
               pool: str = 'mean') -> PretrainedEncoder:
    """Return the encoder of a model built from its config.

    Args:
        model (CMAE | FrozenViT | ImageClassifier): The model.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        img_size (int | Sequence[int], optional): See :func:`load_encoder`.
            Defaults to the model's.
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
    record = read_encoder_record(encoder_record(model, images))
    found = FoundEncoder(
        state, f'a {type(model).__name__}', grid=grid_of(state, record))
    return with_preprocessing(
        build_encoder(found, record, encoder, img_size), pool)


def with_preprocessing(loaded: LoadedEncoder,
                       pool: str = 'mean',
                       stats: PathLike | None = None) -> PretrainedEncoder:
    """Add decoding and normalisation of images to an encoder.

    Args:
        loaded (LoadedEncoder): The encoder.
        pool (str): See :func:`load_encoder`.
        stats (str | PathLike, optional): See :func:`load_encoder`.

    Returns:
        PretrainedEncoder: In evaluation mode.

    Raises:
        CheckpointError: If the normalisation of its images is unknown.
    """
    backbone = loaded.backbone
    # of a hybrid the first stage's
    channels: int = getattr(backbone, 'in_channels', None) or (
        backbone.patch_embed.projection.in_channels)
    normalisation = _find_normalisation(channels, loaded.record, stats)
    found = PretrainedEncoder(backbone, pool, **normalisation).eval()
    if 'crop_pct' in loaded.record:
        found.centre_crop.short_side = round(
            min(to_pair(found.img_size)) / loaded.record['crop_pct'])
    return found


def _find_normalisation(channels: int, record: dict[str, Any],
                        stats: PathLike | None) -> dict[str, Any]:
    """Find the settings to decode, normalise and show images."""
    if stats is not None:
        from ..datasets.stats import read_image_stats
        from ..image_config import settings_of, value_range_of
        known = read_image_stats(stats)
        known['images'] = settings_of(known)
        known['value_range'] = value_range_of(known)
    else:
        known = record
    found: dict[str, Any] = {
        k: known[k] for k in ('mean', 'std', 'images', 'value_range')
        if k in known
    }
    mean = found.get('mean', MEAN)
    images = found.get('images') or dict(channels=len(mean))
    lacking = 'mean' not in found and not is_colour(images)
    counts = {images['channels'], len(mean)}
    if lacking or counts != {channels}:
        if 'mean' not in found:
            raise CheckpointError(
                f'its encoder takes images of {channels} channel(s), but it '
                'does not record their normalisation; set stats= (--stats) to '
                'a file of `cmae stats`')
        raise CheckpointError(
            f'its encoder takes images of {channels} channel(s), but '
            f'{stats or "its own record"} is about images of '
            f'{" or ".join(map(str, sorted(counts - {channels})))}')
    if 'mean' not in found:
        print_log(
            'It does not record the normalisation of images: using the mean '
            'and standard deviation of ImageNet.', logger='current')
    found['images'] = None if is_plain(images) else images
    return found
