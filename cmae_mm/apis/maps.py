"""Maps of a folder's images, and the nearest images of an image."""
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from ..datasets.source import ImageSource, open_source
from ..evaluation.feature_files import storable
from ..visualization import label_files, save_sheet, to_rgb
from ..visualization.image_map import (
    METHODS,
    choose_method,
    draw_map,
    lay_out,
    nearest,
)
from ..visualization.sheet import save_picture
from .centre_crop import CentreCrop
from .checks import ArgumentError, PathLike, check_choice
from .embedding import Embeddings, embed
from .encoder import load_encoder
from .images import evenly, load_crops, pick_images
from .pictures import check_picture, check_shown
from .pretrained_encoder import PretrainedEncoder


class ImageMap(NamedTuple):
    """A map that was written.

    Args:
        out (Path): The picture.
        paths (List[str]): The images on it, relative to the folder.
        places (np.ndarray): Their places in [0, 1], (N, 2).
        method (str): 'umap' or 'tsne'.
    """

    out: Path
    paths: List[str]
    places: np.ndarray
    method: str


class Neighbours(NamedTuple):
    """The nearest images of some images.

    Args:
        out (Path): The picture.
        found (Dict[str, List[Tuple[str, float]]]): For each image the paths
            of the nearest ones and their cosine, nearest first.
    """

    out: Path
    found: Dict[str, List[Tuple[str, float]]]


def _read_features(data: PathLike, checkpoint: PathLike,
                   features: Optional[PathLike], options: Dict[str, Any]
                   ) -> Tuple[List[str], np.ndarray]:
    """Compute features, or read those that ``cmae embed`` wrote."""
    if features is not None and not str(features).endswith('.npz'):
        raise ArgumentError(
            'features are kept in an .npz file here, but got '
            f'{str(features)!r}')
    made: Embeddings = embed(data, checkpoint, features, **options)
    if made.features is not None:
        return made.paths, made.features
    with np.load(str(made.out)) as file:
        return [str(p) for p in file['paths']], file['features']


def map_images(data: PathLike,
               checkpoint: PathLike,
               out: PathLike = 'map.png',
               *,
               features: Optional[PathLike] = None,
               method: str = 'auto',
               most: int = 1000,
               thumbnail: int = 48,
               channels: Optional[Sequence[int]] = None,
               seed: int = 0,
               **options: Any) -> ImageMap:
    """Draw a folder's images on a map, those alike to the encoder together.

    Args:
        data (str | PathLike): Folder of images, list, store or shards.
        checkpoint (str | PathLike): See :func:`load_encoder`.
        out (str | PathLike): Picture to write. Defaults to 'map.png'.
        features (str | PathLike, optional): An ``.npz`` file that features
            are kept in and read from again, see :func:`embed`. Defaults to
            None.
        method (str): 'umap', 'tsne', or 'auto', UMAP where it is installed.
            Defaults to 'auto'.
        most (int): Largest number of images on the map, evenly spaced.
            Defaults to 1000.
        thumbnail (int): Side of a thumbnail in pixels. Defaults to 48.
        channels (Sequence[int], optional): The three channels that are shown
            as red, green and blue, or the one in grey, numbered from 0.
            Defaults to None: three as they are, the mean of others in grey.
        seed (int): Seed of the layout. Defaults to 0.
        **options: Other arguments of :func:`embed`: ``encoder``, ``pool``,
            ``batch_size``, ``num_workers``, ``img_size``, ``num_heads``.

    Returns:
        ImageMap: The map; images in class folders are framed by class.

    Raises:
        ArgumentError: If an argument is none of what is allowed.
        ImportError: If UMAP is asked for and not installed.
    """
    check_picture(out)
    check_choice('method', method, METHODS)
    method = choose_method(method)
    paths, values = _read_features(data, checkpoint, features, options)
    if len(paths) < 2:
        raise ArgumentError(f'a map needs two images or more, and {data} has '
                            f'{len(paths)} that can be read')
    chosen = evenly(len(paths), most)
    paths, values = [paths[i] for i in chosen], values[chosen]
    places = lay_out(values, method, seed)
    groups = [Path(p).parts[0] if len(Path(p).parts) > 1 else ''
              for p in paths]
    if len(set(groups)) == 1 and groups[0]:  # of `train` alone
        groups = [Path(p).parent.name for p in paths]
    model = load_encoder(checkpoint, num_heads=options.get('num_heads'))
    check_shown(channels, model.in_channels)
    picture = draw_map(
        places, _thumbnails(model, open_source(data), paths, thumbnail,
                            channels), groups)
    path = Path(out).expanduser()
    save_picture(path, picture)
    return ImageMap(path, paths, places, method)


def _thumbnails(model: PretrainedEncoder, source: ImageSource,
                paths: Sequence[str], side: int,
                channels: Optional[Sequence[int]]) -> List[np.ndarray]:
    crop = CentreCrop(side, model.images)
    number = {storable(name): i for i, name in enumerate(source.names)}
    return [to_rgb(model.normalize(crop(crop.decode(
        source.read(number[path]), path)))[None], model, channels)[0]
        for path in paths]


def nearest_images(data: PathLike,
                   checkpoint: PathLike,
                   images: Sequence[PathLike],
                   out: PathLike = 'nearest.png',
                   *,
                   features: Optional[PathLike] = None,
                   count: int = 8,
                   thumbnail: int = 128,
                   channels: Optional[Sequence[int]] = None,
                   **options: Any) -> Neighbours:
    """Find the images of a folder that are most like some images.

    Args:
        data (str | PathLike): Folder of images, list, store or shards.
        checkpoint (str | PathLike): See :func:`load_encoder`.
        images (Sequence[str | PathLike]): The images to look for.
        out (str | PathLike): Picture to write. Defaults to 'nearest.png'.
        features (str | PathLike, optional): See :func:`map_images`.
        count (int): Number of images to find for each; the image itself,
            where it is in the folder, is left out. Defaults to 8.
        thumbnail (int): Side of a picture in pixels. Defaults to 128.
        channels (Sequence[int], optional): See :func:`map_images`.
        **options: Other arguments of :func:`embed`.

    Returns:
        Neighbours: Paths and cosines, and the picture.

    Raises:
        ArgumentError: If an argument is none of what is allowed.
    """
    check_picture(out)
    asked = pick_images(images, 8)
    source = open_source(data)
    paths, values = _read_features(data, checkpoint, features, options)
    model = load_encoder(
        checkpoint, options.get('encoder', 'online'),
        pool=options.get('pool', 'mean'), img_size=options.get('img_size'),
        num_heads=options.get('num_heads'))
    check_shown(channels, model.in_channels)
    with torch.no_grad():
        queries = model(model.normalize(load_crops(
            asked, CentreCrop(model.img_size, model.images)))).numpy()
    found: Dict[str, List[Tuple[str, float]]] = {}
    for image, near in zip(asked, nearest(values, queries, count + 1)):
        others = [(paths[i], cosine) for i, cosine in near
                  if Path(source.root, paths[i]).resolve() !=
                  image.path.resolve()]
        found[str(image.path)] = others[:count]
    shown = to_rgb(model.normalize(load_crops(
        asked, CentreCrop(thumbnail, model.images))), model, channels)
    columns: Dict[str, Any] = {'image': list(shown)}
    rows = [_thumbnails(model, source, [p for p, _ in near], thumbnail,
                        channels) for near in found.values()]
    for k in range(min(map(len, rows))):
        columns[f'nearest {k + 1}'] = [row[k] for row in rows]
    labels = [
        f'{name}: cosine ' + ', '.join(f'{c:.3f}' for _, c in near)
        for name, near in zip(
            label_files([Path(f) for f in found]), found.values())]
    path = Path(out).expanduser()
    save_sheet(str(path), columns, labels=labels)
    return Neighbours(path, found)
