"""Commands that draw pictures and write reports."""
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from ..dependencies import require
from ..image_size import to_pair
from .arguments import (PICTURES, ArgumentError, CfgOptions, Checkpoint,
                        ConfigName, Count, Data, Images, Output, PathLike,
                        Pool, Range, Size, Text, command)
from .embedding import (AnyEncoder, EmbedOptions, EncoderOptions,
                        FeatureOptions, embed_source)

if TYPE_CHECKING:
    import numpy as np

    from ..datasets.source import ImageSource
    from ..evaluation.features import CentreCrop
    from .encoder import PretrainedEncoder
    from .images import PickedImage

PictureFile = Annotated[PathLike, Output(*PICTURES), Text(
    'Output image, .png, .jpg or .webp.')]
FeatureFile = Annotated[PathLike, Output('.npz'), Text(
    'Feature file, .npz: read if it exists, otherwise computed and '
    'written.')] | None
Channels = Annotated[Sequence[Count], Text(
    'Three channels to show as red, green and blue, or one to show in grey, '
    'numbered from 0. By default three channels are shown as RGB, and the '
    'mean of any other number in grey.')] | None
ManyImages = Annotated[Sequence[Images], Text(
    'Image files, folders, lists, stores or shards.')]
PerFolder = Annotated[Size, Text(
    'Number of images to show from each folder, evenly spaced.')]
Thumbnail = Annotated[Annotated[int, Range(8)], Text(
    'Side of a thumbnail in pixels.')]


class Picture(NamedTuple):
    """A picture that was written.

    Args:
        out (Path): The file.
        columns (list[str]): The titles of its columns.
        images (list[Path]): The images it shows, in order.
    """

    out: Path
    columns: list[str]
    images: list[Path]


class Views(NamedTuple):
    """A picture of views.

    Args:
        out (Path): The file.
        columns (list[str]): The titles of its columns.
        shifts (list[tuple[int, int]]): Shift ``(r_y, r_x)`` of each target
            window in pixels; empty without windows of a canvas.
    """

    out: Path
    columns: list[str]
    shifts: list[tuple[int, int]]


class ImageMap(NamedTuple):
    """A map of images.

    Args:
        out (Path): The picture.
        paths (list[str]): The images on it, relative to the folder.
        places (np.ndarray): Their places in [0, 1], (N, 2).
        method (str): 'umap' or 'tsne'.
    """

    out: Path
    paths: list[str]
    places: 'np.ndarray'
    method: str

    def as_json(self) -> dict[str, Any]:
        """Return what ``cmae map --json`` prints."""
        return dict(out=str(self.out), images=len(self.paths),
                    method=self.method)


class Neighbours(NamedTuple):
    """The nearest images of some images.

    Args:
        out (Path): The picture.
        found (dict[str, list[tuple[str, float]]]): For each image the paths
            of the nearest ones and their cosine, nearest first.
    """

    out: Path
    found: dict[str, list[tuple[str, float]]]


class WrittenReport(NamedTuple):
    """A report that was written.

    Args:
        out (Path): The HTML file.
        runs (list[str]): Names of the runs in it.
        warnings (dict[str, list[str]]): Sentences by run.
    """

    out: Path
    runs: list[str]
    warnings: dict[str, list[str]]


@command()
def views(config: ConfigName,
          *,
          out: PictureFile = 'views.png',
          most: Size = 8,
          show: Channels = None,
          cfg_options: CfgOptions = ()) -> Views:
    """Show the views that a config passes to the network.

    A grid of the first training images: canvas with both windows, online view,
    visible patches, target view. Augmentations are drawn as for a batch of
    this size.

    Example::

        $ cmae views cmae_vit-s_300e
        $ cmae views mine.py --cfg-options data_preprocessor.max_shift=0

    Args:
        config: Pre-training config: a file, or the name of a packaged one,
            whose data are in the folder $DATA_ROOT.
        most: Number of images. Defaults to 8.

    Returns:
        Views: The picture and the shifts.

    Raises:
        ArgumentError: If an argument is invalid.
        ValueError: If it is not a pre-training config, or the images have
            other channels.
    """
    from ..config import load_config
    from ..visualization import fitting_scale, save_grid
    from ..visualization.reconstruction import draw_views
    cfg = load_config(str(config), cfg_options)
    columns, shifts = draw_views(cfg, most, show)
    path = Path(out)
    side = max(columns['online view'].shape[1:3])
    save_grid(path, columns, fitting_scale(side), 1 if most <= 4 else 2)
    return _report(Views(path, list(columns), shifts))


@command()
def reconstruct(checkpoint: Checkpoint,
                images: ManyImages,
                out: PictureFile = 'reconstruction.png',
                *,
                config: ConfigName | None = None,
                most: PerFolder = 8,
                show: Channels = None,
                seed: Count = 0) -> Picture:
    """Show reconstructions of masked images.

    Columns: input, visible patches, prediction, and the prediction with the
    mean and standard deviation of each input patch. The model is built from
    the config stored in the checkpoint; no code in the file is executed.

    Example::

        $ cmae reconstruct work_dirs/vit-s_photos/epoch_100.pth photo1.jpg
        $ cmae reconstruct cmae_official.pth photos --config cmae_vit-b_300e

    Args:
        checkpoint: Pre-training checkpoint; a released CMAE one needs
            --config.
        config: Config of the model. Defaults to the checkpoint's own.
        seed: Seed of the masks. Defaults to 0.

    Returns:
        Picture: The picture.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
    """
    import torch
    from mmengine.device import get_device

    from ..checkpoints import load_pretraining_model
    from ..evaluation.features import CentreCrop
    from ..visualization import prediction_columns
    from .images import load_crops, pick_images
    picked = pick_images(images, most)
    model, record = load_pretraining_model(
        str(checkpoint), None if config is None else str(config))
    model.to(get_device())
    backbone, preprocessor = model.backbone, model.data_preprocessor
    picked, crops = load_crops(
        picked, CentreCrop(backbone.img_size, record.get('images')))
    normal = (crops.to(preprocessor.mean.device).float() - preprocessor.mean
              ) / preprocessor.std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask = backbone.generate_mask(len(normal), 'cpu').to(normal.device)
    made = _save(out, picked, prediction_columns(model, normal, mask, show))
    if len(made.columns) == 4:
        print('The loss normalises the pixels of each patch, so the third '
              'column shows neither brightness nor contrast. The last column '
              'uses the mean and standard deviation of the input patch.')
    return made


@command(options=EncoderOptions)
def attention(checkpoint: AnyEncoder,
              images: ManyImages,
              out: PictureFile = 'attention.png',
              *,
              layer: int = -1,
              heads: bool = False,
              most: PerFolder = 8,
              show: Channels = None,
              **options: Any) -> Picture:
    """Show which patches the class token attends to.

    Example::

        $ cmae attention work_dirs/vit-s_photos/epoch_100.pth photos --heads

    Args:
        layer: Layer, counted from 1, or from the end by a negative number.
            Defaults to -1, the last.
        heads: Show each head in addition to the mean.

    Returns:
        Picture: The picture.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
    """
    from ..visualization import attention_maps, overlay
    from .encoder import find_layer
    from .images import pick_images
    picked = pick_images(images, most)
    model = EncoderOptions(**options).load(checkpoint, 'mean')
    number = find_layer(model.backbone, layer)
    picked, crops, normal = _prepare(model, picked, show)
    maps = attention_maps(model.backbone, normal, number - 1)
    columns = {'image': crops, 'attention': overlay(crops, maps.mean(dim=1))}
    for head in range(maps.shape[1] if heads else 0):
        columns[f'head {head + 1}'] = overlay(crops, maps[:, head])
    return _save(out, picked, columns)


@command(options=EncoderOptions)
def features(checkpoint: AnyEncoder,
             images: ManyImages,
             out: PictureFile = 'features.png',
             *,
             most: PerFolder = 8,
             show: Channels = None,
             **options: Any) -> Picture:
    """Show patch features as colours, by principal components.

    Red, green and blue are the first three principal components of the patch
    features of all images together: similar patches have similar colours.

    Example::

        $ cmae features work_dirs/vit-s_photos/epoch_100.pth photos

    Args:
        images: Image files, folders, lists, stores or shards.

    Returns:
        Picture: The picture.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
    """
    import torch

    from ..visualization import colour_features
    from .images import pick_images
    picked = pick_images(images, most)
    model = EncoderOptions(**options).load(checkpoint, 'patch')
    picked, crops, normal = _prepare(model, picked, show)
    with torch.no_grad():
        colours = colour_features(model(normal), model.grid)
    large = colours.repeat(model.patch_size, axis=1).repeat(
        model.patch_size, axis=2)
    return _save(out, picked, {'image': crops, 'patch features': large})


def _check_umap(method: str, **others: Any) -> None:
    """Check that UMAP is installed if it is chosen."""
    if method == 'umap':
        require('umap', 'the method umap', 'map')


@command(check=_check_umap, options=FeatureOptions)
def map_images(data: Data,
               checkpoint: AnyEncoder,
               out: PictureFile = 'map.png',
               *,
               method: Literal['auto', 'umap', 'tsne'] = 'auto',
               most: Annotated[int, Range(2)] = 1000,
               thumbnail: Thumbnail = 48,
               seed: Count = 0,
               features: FeatureFile = None,
               show: Channels = None,
               pool: Pool = 'mean',
               **options: Any) -> ImageMap:
    """Draw a two-dimensional map of images by their features.

    Similar images are close to each other. Images in class folders have a
    frame in the colour of their class.

    Example::

        $ cmae map photos work_dirs/vit-s_photos/epoch_100.pth

    Args:
        data: Folder of images, list, store or shards.
        method: UMAP or t-SNE. Defaults to auto, UMAP if it is installed.
        most: Number of images on the map, evenly spaced. Defaults to 1000.
        seed: Seed of the layout. Defaults to 0.

    Returns:
        ImageMap: The picture and the places.

    Raises:
        ArgumentError: If an argument is invalid, or there are fewer than two
            images.
        MissingLibrary: If UMAP is chosen and not installed.
    """
    from ..datasets.listing import PART_NAMES, case_variants, evenly_spaced
    from ..datasets.source import open_source
    from ..visualization.image_grid import save_picture
    from ..visualization.projection import choose_method, draw_map, project
    source = open_source(data)
    model, paths, values = _embed(
        source, checkpoint, features, EmbedOptions(pool=pool, **options))
    if len(paths) < 2:
        raise ArgumentError(f'a map needs at least two images, but {data} has '
                            f'{len(paths)} that can be decoded')
    chosen = evenly_spaced(len(paths), most)
    paths = [paths[i] for i in chosen]
    chosen_method = choose_method(method)
    places = project(values[chosen], chosen_method, seed)
    groups = [Path(p).parts[0] if len(Path(p).parts) > 1 else ''
              for p in paths]
    if len(set(groups)) == 1 or set(groups) <= set(
            case_variants(sum(PART_NAMES.values(), ()))):
        groups = [Path(p).parent.name for p in paths]
    path = Path(out)
    save_picture(path, draw_map(places, _thumbnails(
        model, source, paths, thumbnail, show), groups))
    name = dict(umap='UMAP', tsne='t-SNE')[chosen_method]
    print(f'Wrote {path}: {len(paths):,} images, laid out by {name}')
    return ImageMap(path, paths, places, chosen_method)


@command(options=FeatureOptions)
def nearest(data: Data,
            checkpoint: AnyEncoder,
            images: ManyImages,
            out: PictureFile = 'nearest.png',
            *,
            count: Size = 8,
            thumbnail: Thumbnail = 128,
            features: FeatureFile = None,
            show: Channels = None,
            pool: Pool = 'mean',
            **options: Any) -> Neighbours:
    """Find the most similar images in a folder.

    Example::

        $ cmae nearest photos work_dirs/vit-s_photos/epoch_100.pth cat.jpg

    Args:
        data: Folder of images, list, store or shards.
        images: Query images.
        count: Number of images to find for each query, excluding the query
            itself. Defaults to 8.

    Returns:
        Neighbours: Paths and cosines, and the picture.

    Raises:
        ArgumentError: If an argument is invalid.
    """
    import torch

    from ..datasets.source import open_source
    from ..visualization import label_files, save_grid, to_rgb
    from ..visualization.projection import find_nearest
    from .images import load_crops, pick_images
    queries = pick_images(images, 8)
    source = open_source(data)
    model, paths, values = _embed(
        source, checkpoint, features, EmbedOptions(pool=pool, **options))
    queries, _, normal = _prepare(model, queries, show)
    with torch.no_grad():
        wanted = model(normal).cpu().numpy()
    found: dict[str, list[tuple[str, float]]] = {}
    for image, ranked in zip(queries,
                             find_nearest(values, wanted, count + 1)):
        others = [(paths[i], cosine) for i, cosine in ranked
                  if Path(source.root, paths[i]).resolve() !=
                  image.path.resolve()]
        found[str(image.path)] = others[:count]
    _, crops = load_crops(queries, _crop_of(model, thumbnail))
    columns: dict[str, Any] = {'image': to_rgb(
        model.normalize(crops.to(model.mean.device)), model, show)}
    rows = [_thumbnails(model, source, [path for path, _ in near], thumbnail,
                        show) for near in found.values()]
    for k in range(min(map(len, rows))):
        columns[f'nearest {k + 1}'] = [row[k] for row in rows]
    labels = [
        f'{name}: cosine ' + ', '.join(f'{cosine:.3f}' for _, cosine in near)
        for name, near in zip(label_files([image.path for image in queries]),
                              found.values())]
    path = Path(out)
    save_grid(path, columns, labels=labels)
    for name, near in found.items():
        print(f'nearest to {name}:')
        for other, cosine in near:
            print(f'  {cosine:.4f}  {other}')
    print(f'Wrote {path}')
    return Neighbours(path, found)


def _check_report(work_dirs: Sequence[PathLike], **others: Any) -> None:
    """Check that the folders exist and plotly is installed."""
    for folder in work_dirs:
        if not Path(folder).is_dir():
            raise ArgumentError(f'the folder {folder} does not exist')
    require('plotly', 'a report', 'report')


@command(check=_check_report)
def report(work_dirs: Sequence[PathLike],
           out: Annotated[PathLike, Output('.html', '.htm')] = 'report.html'
           ) -> WrittenReport:
    """Write an HTML report of one or several trainings.

    One HTML file with zoomable curves, pictures, evaluation results with
    intervals, health warnings, settings, environment and cost. It needs no
    network connection.

    Example::

        $ cmae report work_dirs/vit-s_photos
        $ cmae report work_dirs/first work_dirs/second --out compared.html

    Args:
        work_dirs: Work folders of trainings. Curves of several trainings are
            drawn in the same charts.
        out: HTML file to write. Defaults to report.html.

    Returns:
        WrittenReport: The file, and the warnings.

    Raises:
        ArgumentError: If an argument is invalid.
        FileNotFoundError: If no folder has a log.
        MissingLibrary: If plotly is not installed.
    """
    from ..files import write_file
    from ..visualization.html_report import build_report
    page, warnings = build_report(list(map(Path, work_dirs)))
    file = Path(out)
    write_file(file, page)
    for name, sentences in warnings.items():
        for sentence in sentences:
            print(f'{name}: {sentence}')
    print(f'Wrote {file}, which needs no network')
    return WrittenReport(file, list(warnings), warnings)


def _prepare(model: 'PretrainedEncoder', picked: list['PickedImage'],
             show: Channels) -> Any:
    """Return readable images, crops to show, (N, H, W, 3), and the input."""
    from ..visualization import to_rgb
    from .images import load_crops
    picked, crops = load_crops(picked, model.centre_crop)
    normal = model.normalize(crops.to(model.mean.device))
    return picked, to_rgb(normal, model, show), normal


def _crop_of(model: 'PretrainedEncoder', side: int) -> 'CentreCrop':
    """Return the model's crop at another size, by its longer side."""
    from ..evaluation.features import CentreCrop
    crop, pair = model.centre_crop, to_pair(model.img_size)
    size = [max(round(side * s / max(pair)), 1) for s in pair]
    return CentreCrop(size, model.images,
                      round(min(size) * crop.short_side / min(pair)))


def _embed(source: 'ImageSource', checkpoint: PathLike,
           file: PathLike | None, options: EmbedOptions) -> Any:
    """Return the encoder, names of images, and their features.

    Features are computed, or read from a file of ``cmae embed``.
    """
    import numpy as np
    load = cache(lambda: options.load(checkpoint, options.pool))
    made = embed_source(source, checkpoint, load, file, options)
    if made.features is not None:
        return load(), made.paths, made.features
    with np.load(str(made.out)) as content:
        return load(), made.paths, content['features']


def _thumbnails(model: 'PretrainedEncoder', source: 'ImageSource',
                paths: Sequence[str], side: int, show: Channels
                ) -> list['np.ndarray']:
    from ..evaluation.features import storable
    from ..visualization import to_rgb
    crop = _crop_of(model, side)
    number = {storable(name): i for i, name in enumerate(source.names)}
    device = model.mean.device
    crops = (crop(crop.decode(source.open(number[path]), path, whole=False))
             for path in paths)
    return [to_rgb(model.normalize(image.to(device))[None], model, show)[0]
            for image in crops]


def _save(out: PathLike, picked: list['PickedImage'],
          columns: dict[str, Any]) -> Picture:
    from ..visualization import fitting_scale, label_files, save_grid
    path = Path(out)
    side = max(next(iter(columns.values()))[0].shape[:2])
    files = [image.path for image in picked]
    # Few columns leave room for two images side by side.
    per_row = 2 if len(files) > 4 and len(columns) <= 4 else 1
    save_grid(path, columns, fitting_scale(side), per_row, label_files(files))
    return _report(Picture(path, list(columns), files))


def _report(picture: Any) -> Any:
    print(f'Wrote {picture.out}: {", ".join(picture.columns)}')
    return picture
