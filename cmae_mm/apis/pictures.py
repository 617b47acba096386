"""Pictures of views, reconstructions, attention and features."""
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
from mmengine.device import get_device

from ..checkpoints import load_pretraining_model
from ..files import check_output
from ..visualization import (
    attention_maps,
    colour_features,
    fitting_scale,
    label_files,
    overlay,
    prediction_columns,
    save_sheet,
    to_rgb,
)
from .centre_crop import CentreCrop
from .checks import ArgumentError, PathLike, check_checkpoint, check_choice
from .encoder import load_encoder
from .images import PickedImage, load_crops, pick_images
from .pretrained_encoder import PretrainedEncoder


class Picture(NamedTuple):
    """A picture that was written.

    Args:
        out (Path): The file.
        images (List[Path]): The images it shows, in order.
        columns (List[str]): The titles of its columns.
    """

    out: Path
    images: List[Path]
    columns: List[str]


def check_picture(out: PathLike) -> None:
    """Check that a picture can be written under a name.

    Raises:
        ArgumentError: If its ending is of no picture.
        OSError: If it cannot be written.
    """
    path = Path(out).expanduser()
    check_choice('the ending of out', path.suffix.lower(),
                 ('.png', '.jpg', '.jpeg', '.webp'))
    check_output(path)


def check_shown(channels: Optional[Sequence[int]], count: int) -> None:
    """Check which channels pictures shall show.

    Raises:
        ArgumentError: If they are not one or three, or images have others.
    """
    if channels is not None and (len(channels) not in (1, 3) or not all(
            0 <= c < count for c in channels)):
        raise ArgumentError(
            f'pictures show one channel or three, each from 0 to {count - 1} '
            f'here, but got {list(channels)}')


def _save(out: PathLike, picked: List[PickedImage],
          columns: Dict[str, Any]) -> Picture:
    path = Path(out).expanduser()
    side = next(iter(columns.values()))[0].shape[0]
    # Two images side by side fill a wide screen where there are few columns.
    files = [image.path for image in picked]
    per_row = 2 if len(files) > 4 and len(columns) <= 4 else 1
    save_sheet(str(path), columns, fitting_scale(side), per_row,
               label_files(files))
    return Picture(path, files, list(columns))


def reconstruct(checkpoint: PathLike,
                images: Sequence[PathLike],
                out: PathLike = 'reconstruction.png',
                *,
                config: Optional[str] = None,
                most: int = 8,
                channels: Optional[Sequence[int]] = None,
                seed: int = 0) -> Picture:
    """Show what a pre-trained model makes of masked images.

    Args:
        checkpoint (str | PathLike): A pre-training checkpoint.
        images (Sequence[str | PathLike]): Images, see
            :func:`~cmae_mm.apis.images.pick_images`.
        out (str | PathLike): Picture to write. Defaults to
            'reconstruction.png'.
        config (str, optional): See :func:`load_pretraining_model`.
        most (int): Largest number of images. Defaults to 8.
        channels (Sequence[int], optional): The three channels that are shown
            as red, green and blue, or the one in grey, numbered from 0.
            Defaults to None: three as they are, the mean of others in grey.
        seed (int): Seed of the masks. Defaults to 0.

    Returns:
        Picture: With the columns of :func:`prediction_columns`.

    Raises:
        ArgumentError: If an image or a name is none.
        CheckpointError: If the checkpoint cannot be used.
    """
    check_checkpoint(checkpoint)
    check_picture(out)
    picked = pick_images(images, most)
    model, facts = load_pretraining_model(str(checkpoint), config)
    model.to(get_device())
    backbone, preprocessor = model.backbone, model.data_preprocessor
    check_shown(channels, len(preprocessor.mean))
    size = backbone.img_size
    crops = load_crops(picked, CentreCrop(
        size if isinstance(size, int) else size[0], facts.get('images')))
    normal = (crops.to(preprocessor.mean.device).float() - preprocessor.mean
              ) / preprocessor.std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask = backbone.generate_mask(len(normal), 'cpu').to(normal.device)
    columns: Dict[str, Any] = prediction_columns(model, normal, mask,
                                                 channels)
    return _save(out, picked, columns)


def attention(checkpoint: PathLike,
              images: Sequence[PathLike],
              out: PathLike = 'attention.png',
              *,
              encoder: str = 'online',
              layer: int = -1,
              heads: bool = False,
              most: int = 8,
              channels: Optional[Sequence[int]] = None,
              img_size: Optional[int] = None,
              num_heads: Optional[int] = None) -> Picture:
    """Show what an encoder's class token looks at.

    Args:
        checkpoint (str | PathLike): See :func:`load_encoder`.
        images (Sequence[str | PathLike]): Images, see
            :func:`~cmae_mm.apis.images.pick_images`.
        out (str | PathLike): Picture to write. Defaults to 'attention.png'.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        layer (int): The layer, counted from 1, or from the end by a negative
            number. Defaults to -1, the last.
        heads (bool): Whether each head is shown beside their mean. Defaults
            to False.
        most (int): Largest number of images. Defaults to 8.
        channels (Sequence[int], optional): See :func:`reconstruct`.
        img_size (int, optional): See :func:`load_encoder`.
        num_heads (int, optional): See :func:`load_encoder`.

    Returns:
        Picture: With the image, the mean over the heads, and each head.

    Raises:
        ArgumentError: If an image, a name or the layer is none.
        CheckpointError: If the checkpoint cannot be used.
    """
    check_picture(out)
    picked = pick_images(images, most)
    model = load_encoder(checkpoint, encoder, img_size=img_size,
                         num_heads=num_heads).to(get_device())
    depth = len(model.backbone.layers)
    if layer == 0 or not -depth <= layer <= depth:
        raise ArgumentError(
            f'layer must be from 1 to {depth}, or from -1, the last, to '
            f'{-depth}, but got {layer}')
    crops, normal = _prepare(model, picked, channels)
    maps = attention_maps(model.backbone, normal,
                          layer - 1 if layer > 0 else layer)
    columns: Dict[str, Any] = {'image': crops}
    columns['attention'] = overlay(crops, maps.mean(dim=1))
    if heads:
        for head in range(maps.shape[1]):
            columns[f'head {head + 1}'] = overlay(crops, maps[:, head])
    return _save(out, picked, columns)


def features(checkpoint: PathLike,
             images: Sequence[PathLike],
             out: PathLike = 'features.png',
             *,
             encoder: str = 'online',
             most: int = 8,
             channels: Optional[Sequence[int]] = None,
             img_size: Optional[int] = None,
             num_heads: Optional[int] = None) -> Picture:
    """Show patch features as colours: alike to the encoder, alike to see.

    Red, green and blue are the first three principal components of the patch
    features of all these images together.

    Args:
        checkpoint (str | PathLike): See :func:`load_encoder`.
        images (Sequence[str | PathLike]): Images, see
            :func:`~cmae_mm.apis.images.pick_images`.
        out (str | PathLike): Picture to write. Defaults to 'features.png'.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        most (int): Largest number of images. Defaults to 8.
        channels (Sequence[int], optional): See :func:`reconstruct`.
        img_size (int, optional): See :func:`load_encoder`.
        num_heads (int, optional): See :func:`load_encoder`.

    Returns:
        Picture: With the image and its features.

    Raises:
        ArgumentError: If an image or a name is none.
        CheckpointError: If the checkpoint cannot be used.
    """
    check_picture(out)
    picked = pick_images(images, most)
    model = load_encoder(checkpoint, encoder, pool='patch', img_size=img_size,
                         num_heads=num_heads).to(get_device())
    crops, normal = _prepare(model, picked, channels)
    with torch.no_grad():
        colours = colour_features(model(normal))
    large = colours.repeat(model.patch_size, axis=1).repeat(
        model.patch_size, axis=2)
    return _save(out, picked, {'image': crops, 'patch features': large})


def _prepare(model: PretrainedEncoder, picked: List[PickedImage],
             channels: Optional[Sequence[int]]) -> Any:
    """Give crops to show, (N, S, S, 3), and what the model takes."""
    check_shown(channels, model.in_channels)
    crops = load_crops(picked, CentreCrop(model.img_size, model.images))
    normal = model.normalize(crops.to(model.mean.device))
    return to_rgb(normal, model, channels), normal
