"""Checks of detection and segmentation data before training."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import BaseDataset
from torch import nn

from ..datasets.decode import (ImageSettings, UndecodableImage, UnfitImage,
                               decode_image, is_jpeg, read_image)
from ..datasets.listing import evenly_spaced

# Number of images per data set to decode before the first step.
MOST_IMAGES = 500
# Largest difference between decoders of JPEG and CMYK, of 255.
_SLACK = 8
# All channels of a file.
_WHOLE = ImageSettings(channels=None, dtype=None)


def datasets_of(runner: Any) -> dict[str, BaseDataset]:
    """Return a runner's training and validation data, without wrappers."""
    splits = dict(train=runner.train_dataloader.dataset)
    if runner.val_loop is not None:
        splits['val'] = runner.val_dataloader.dataset
    for name, dataset in splits.items():
        while hasattr(dataset, 'dataset'):  # RepeatDataset and the like
            dataset = dataset.dataset
        splits[name] = dataset
    return splits


def check_images_are_kept(name: str, dataset: BaseDataset) -> None:
    """Check that mmcv's loader does not change images of a data set.

    The loader reduces values to 8 bits, multiplies the colours of TIFF files
    by alpha, and ignores pages and some orientations. Up to 500 images, evenly
    spaced, are decoded and compared.

    Args:
        name (str): Name of the split, for the error.
        dataset (BaseDataset): The data set.

    Raises:
        ValueError: If it would change an image; the message has the file name.
    """
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    loaders = [t for t in transforms if isinstance(t, LoadImageFromFile)]
    for number in evenly_spaced(len(dataset), MOST_IMAGES if loaders else 0):
        path = dataset.get_data_info(number)['img_path']
        reason = '' if '://' in path else _find_loss(path, loaders[0])
        if reason:
            raise ValueError(
                f"the {name} data: mmcv's image loader would change {path}: "
                f'{reason}. Detection and segmentation read 8-bit colours: '
                'convert the images to 8-bit JPEG or PNG files without alpha')


def _find_loss(path: str, loader: LoadImageFromFile) -> str:
    """Describe changes of an image by a loader, '' if there are none."""
    data = fileio.get(path)
    if is_jpeg(data) and b'\xff\xe1' not in data:
        return ''  # without EXIF data
    theirs = loader(dict(img_path=path))['img'].astype(float)
    theirs = theirs.reshape(*theirs.shape[:2], -1)
    reason = 'its alpha, range or orientation would be lost'
    try:
        ours = decode_image(data, name=path)
    except UndecodableImage:
        return ''  # format without comparison
    except UnfitImage as error:
        reason = str(error).split('; set ')[0]
        try:  # the loader may keep all channels
            ours = read_image(data, path, _WHOLE).pixels
        except UnfitImage:
            return reason
        if ours.shape[2] >= 3:  # in OpenCV's order
            ours = ours[..., [2, 1, 0, *range(3, ours.shape[2])]]
    is_same = theirs.shape == ours.shape and (
        np.abs(theirs - ours).max() <= _SLACK)
    return '' if is_same else reason


def check_channels(model: nn.Module, parts: Sequence[str]) -> None:
    """Check the input channels of necks and heads.

    Args:
        model (nn.Module): A detector or segmentor. Without ``map_dims`` of
            its backbone nothing is checked.
        parts (Sequence[str]): Names of necks or heads with ``in_channels``
            and, for heads, ``in_index``.

    Raises:
        ValueError: If a part has other channels.
    """
    dims: Sequence[int] = getattr(model.backbone, 'map_dims', ())
    for part in parts if dims else ():
        taker: Any = getattr(model, part, None)
        if not hasattr(taker, 'in_channels'):
            continue
        index = getattr(taker, 'in_index', range(len(dims)))
        given = ([dims[i] for i in index]
                 if isinstance(index, Sequence) else dims[index])
        taken = taker.in_channels
        if given != (taken if isinstance(taken, int) else list(taken)):
            raise ValueError(
                f'the backbone gives {part} maps of {given} channels, but '
                f'model.{part}.in_channels={taken}; set it to {given}')


def check_heads(name: str, dataset: BaseDataset, owner: Any,
                parts: Sequence[str]) -> None:
    """Check that heads have a data set's number of classes.

    Args:
        name (str): Name of the split, for the error.
        dataset (BaseDataset): The data set, whose classes are counted.
        owner (nn.Module): The parent module of the heads.
        parts (Sequence[str]): Attributes with one head, several, or none.

    Raises:
        ValueError: If a head has another number of classes.
    """
    count = len(dataset.metainfo['classes'])
    for part in parts:
        head: Any = getattr(owner, part, None)
        for one in (head if hasattr(head, '__iter__') else [head]):
            classes = getattr(one, 'num_classes', count)
            if classes != count:
                raise ValueError(
                    f'the {name} data has {count} classes, but {part} has '
                    f'num_classes={classes}; set it to {count}')
