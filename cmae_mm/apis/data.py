"""Commands on images: statistics, packing, and splits of labels."""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ..files import check_output
from .arguments import (ArgumentError, Count, Data, OutputFile, OutputFolder,
                        Percent, Size, Text, command)

ShortSide = Annotated[Size, Text(
    'Resize larger images to this shorter side in pixels. JPEG files are '
    'saved as JPEG of quality 92, all others as PNG or TIFF without loss. '
    'Defaults to copying files unchanged.')] | None
MaxPixels = Annotated[Size, Text(
    'Largest number of pixels to decode at once; larger images are not '
    'resized. Defaults to 25 million.')] | None
Readers = Annotated[Count, Text(
    'Number of worker processes that read and resize images.')]
_PER_CHANNEL = ('mean', 'std', 'min', 'low', 'high', 'max')


@command(libraries=False)
def stats(data: Data,
          *,
          out: OutputFile | None = None,
          sample: Count = 2000,
          side: Size = 256,
          num_workers: Count | None = None,
          channels: Size | None = None,
          dtype: Literal['uint8', 'uint16', 'float32'] | None = None,
          bands: Sequence[Count] | None = None,
          value_range: (tuple[float, float] | Literal['per_image'] |
                        None) = None,
          fill: float | Literal['mean'] | None = None,
          window: tuple[float, float] | Literal['file'] | None = None,
          pages: Literal['channels', 'first'] | None = None,
          max_pixels: Size | None = None
          ) -> dict[str, Any]:
    """Measure images and choose the settings for decoding them.

    Reports sizes, types, channels, mean and standard deviation, broken files
    and duplicates of a sample. Training on images that are not 8-bit colour
    needs the written file. The options from --channels on set how images are
    decoded; they are saved in the file and used by training.

    Example::

        $ cmae stats photos --out stats.json
        $ cmae stats scans --window 40 400 --dtype uint8 --out stats.json
        $ cmae stats tiles --bands 3 2 1 7 --fill mean --out stats.json

    Args:
        data: Folder of images, list, store or shards. If there is a part
            train, only this part is used.
        out: JSON file to write, for `cmae pretrain --stats` and for
            image_stats in a config.
        sample: Number of images to decode, drawn at random with a fixed seed;
            0 for all. Defaults to 2000.
        side: Count images with a shorter side below this number of pixels,
            which training enlarges. Defaults to 256.
        num_workers: Number of data workers. Defaults to one for each CPU core,
            at most 8.
        channels: Number of channels. Defaults to the most frequent one; 3 for
            a mixture of grey and colour.
        dtype: Type of the values. Defaults to the narrowest one for all
            files; float32 with a range or a window.
        bands: Channels of the files to take, numbered from 0.
        value_range: LOW HIGH, mapped to the range of the data type; or
            per_image, the range of each image. Defaults to unchanged values.
        fill: Value for missing pixels (NaN, nodata): a number, or mean.
        window: CENTRE WIDTH of a DICOM window; or file, the window stored in
            each file.
        pages: Meaning of TIFF pages or DICOM frames: channels of one image, or
            separate images, of which the first is used.
        max_pixels: Largest number of pixels to decode at once. Defaults to 25
            million, or more if the images need it.

    Returns:
        dict[str, Any]: See :func:`~cmae_mm.datasets.stats.read_image_stats`.

    Raises:
        ArgumentError: If an argument is invalid.
        ValueError: If there are no images, or none that can be measured.
    """
    from ..datasets.stats import measure_images, write_image_stats
    settings = dict(bands=bands, value_range=value_range, fill=fill,
                    window=window, pages=pages, max_pixels=max_pixels)
    found = measure_images(
        data, sample=sample, side=side, num_workers=num_workers,
        channels=channels, dtype=dtype,
        **{k: v for k, v in settings.items() if v is not None})
    print('\n'.join(_describe(found)))
    if out is not None:
        write_image_stats(found, out)
        print(f'Wrote {out}; for these images: cmae pretrain {data} --stats '
              f"{out}, or image_stats='{out}' in a config")
    return found


def _describe(found: dict[str, Any]) -> list[str]:
    """Describe statistics in a few lines."""
    from ..datasets.names import encode_name
    sizes = found['sizes']
    height, width = sizes['height'], sizes['width']
    settings = ', '.join(f'{k}={v!r}' for k, v in found['settings'].items())
    lines = [
        f'images     {found["source"]}',
        f'sampled    {found["sampled"]:,} of them',
        'types      ' + ', '.join(
            f'{count:,} of {kind}' for kind, count in found['types'].items()),
        f'sizes      {height[0]} to {height[2]} pixels high, {width[0]} to '
        f'{width[2]} wide, median {height[1]} x {width[1]}; '
        f'{sizes["smaller"]:,} smaller than {sizes["side"]}, '
        f'{sizes["strips"]:,} longer than 3 to 1',
        f'channels   {found["channels"]} of {found["dtype"]}',
        '           ' + ''.join(f'{word:>12}' for word in (
            'mean', 'std', 'min', '0.1 %', '99.9 %', 'max'))
    ]
    for number in range(found['channels']):
        lines.append(f'  {number:<9}' + ''.join(
            f'{found[name][number]:>12.5g}' for name in _PER_CHANNEL))
    for name in ('broken', 'unfit'):
        count = found[f'{name}_count']
        if count:
            first = found[name][0]
            why = first['reason'] if name == 'unfit' else (
                f'{encode_name(first["path"])} ({first["reason"]})')
            lines.append(f'{name:<11}{count:,}, the first: {why}')
    if found['duplicates']:
        one, other = map(encode_name, found['duplicates'][0])
        lines.append(f'duplicates {found["duplicate_count"]:,}, the first: '
                     f'{other} equals {one}')
    lines += [f'note       {note}' for note in found['notes']]
    return [*lines, f'settings   {settings}']


@command(libraries=False)
def store(data: Data,
          out: OutputFolder,
          *,
          short_side: ShortSide = None,
          max_pixels: MaxPixels = None,
          num_workers: Readers = 0) -> dict[str, Any]:
    """Pack images into one LMDB file, for network disks.

    If interrupted, the same command continues. Training and all other
    commands accept OUT instead of the folder.

    Example::

        $ cmae store /data/imagenet/train /data/imagenet.lmdb --short-side 320

    Args:
        data: Folder of images, list, store or shards.
        out: Folder to write, outside of DATA.

    Returns:
        dict[str, Any]: See :func:`~cmae_mm.datasets.pack.pack_images`.

    Raises:
        ValueError: If the images cannot be packed.
    """
    return _pack(data, out, 'store', short_side=short_side,
                 max_pixels=max_pixels, num_workers=num_workers)


@command(libraries=False)
def shards(data: Data,
           out: OutputFolder,
           *,
           short_side: ShortSide = None,
           max_pixels: MaxPixels = None,
           num_workers: Readers = 0,
           images_per_shard: Size = 2000) -> dict[str, Any]:
    """Pack images into webdataset shards, for many machines.

    If interrupted, the same command continues. Training and all other
    commands accept OUT instead of the folder. Shards (.tar) without an index
    are indexed where they are.

    Example::

        $ cmae shards /data/photos /data/shards --num-workers 8
        $ cmae shards /data/laion /data/laion-index

    Args:
        data: Folder of images, list, store or shards.
        out: Folder to write, outside of DATA.
        images_per_shard: Number of images in a shard. Defaults to 2000, about
            200 MB of photographs.

    Returns:
        dict[str, Any]: See :func:`~cmae_mm.datasets.pack.pack_images`.

    Raises:
        ValueError: If the images cannot be packed.
    """
    return _pack(data, out, 'shards', short_side=short_side,
                 max_pixels=max_pixels, num_workers=num_workers,
                 images_per_shard=images_per_shard)


def _pack(data: Data, out: OutputFolder, kind: str,
          **options: Any) -> dict[str, Any]:
    """Pack the images and print their number."""
    from ..datasets.pack import PLAN_FILE, pack_images
    try:
        found = pack_images(data, out, kind, **options)
    except KeyboardInterrupt as error:
        if not (Path(out) / PLAN_FILE).exists():
            raise
        raise KeyboardInterrupt(
            f'{out} contains an incomplete copy; the same command continues'
        ) from error
    print(found['source'])
    where = f'{len(found["shards"])} shards in ' if 'shards' in found else ''
    print(f'{found["images"]:,} images in {where}{out}')
    for how, count in found.get('copies', {}).items():
        if options['short_side'] is not None:
            print(f'{count:,} {how}')
    for how, reason in found.get('reasons', {}).items():
        print(f'first {how}: {reason}')
    return dict(found, out=str(out))


def _check_splits(data: Data, out: OutputFolder | None,
                  **others: Any) -> None:
    check_output(_splits_folder(data, out), is_folder=True)


def _splits_folder(data: Data, out: OutputFolder | None) -> Path:
    if out is not None:
        return Path(out)
    path = Path(data)
    return (path.parent if path.is_file() else path) / 'splits'


@command(check=_check_splits, libraries=False)
def splits(data: Data,
           *,
           percent: Sequence[Percent] = (1., 10.),
           seed: Count = 0,
           out: OutputFolder | None = None) -> dict[str, Any]:
    """Draw random subsets of the labelled images.

    Writes annotation files of LabelledDataset: <percent>pct_seed<seed>.txt

    Example::

        $ cmae splits /data/imagenet --percent 1 10

    Args:
        data: Data folder with train/<class>/*.jpg, or a list with labels.
        percent: Share of the images of each class in percent. Defaults to 1
            and 10.
        seed: The same seed draws the same images. Defaults to 0.
        out: Folder to write. Defaults to DATA/splits, or splits beside a
            list.

    Returns:
        dict[str, Any]: Number of ``images``, and number by name of ``files``.

    Raises:
        ArgumentError: If an argument is invalid, or there are no labelled
            images.
    """
    from ..datasets.source import SourceError, open_source
    from ..evaluation.data import write_split
    try:
        source = open_source(data, split='train', labels=True)
        if source.kind != 'list' and not source.split:
            raise SourceError(f'{os.fspath(data)} has no part train')
    except SourceError as error:
        raise ArgumentError(
            f'{error}; use class folders in train, or a list with '
            'labels') from error
    folder = _splits_folder(data, out)
    files = {}
    for share in percent:
        path = str(folder / f'{share:g}pct_seed{seed}.txt')
        files[path] = write_split(source, share, seed, path)
        print(f'{path}: {files[path]} of {len(source)} images')
    return dict(images=len(source), files=files)
