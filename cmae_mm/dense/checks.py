"""What the checks of detection and segmentation data have in common."""
from typing import Any, Dict, Sequence

from mmengine.dataset import BaseDataset
from torch import nn


def datasets_of(runner) -> Dict[str, BaseDataset]:
    """Give a runner's training and validation data, without wrappers."""
    splits = dict(train=runner.train_dataloader.dataset)
    if runner.val_loop is not None:
        splits['val'] = runner.val_dataloader.dataset
    for name, dataset in splits.items():
        while hasattr(dataset, 'dataset'):  # RepeatDataset and the like
            dataset = dataset.dataset
        splits[name] = dataset
    return splits


def check_channels(model: nn.Module, parts: Sequence[str]) -> None:
    """Check that what takes a pyramid of maps has their channels.

    Args:
        model (nn.Module): A detector or segmentor. Where its backbone does
            not tell ``map_dims``, nothing is checked.
        parts (Sequence[str]): Attributes that hold what takes the maps, by
            ``in_channels`` and, of heads, ``in_index``.

    Raises:
        ValueError: If a part has other channels.
    """
    dims = getattr(model.backbone, 'map_dims', None)
    for part in parts if dims else ():
        taker = getattr(model, part, None)
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
        owner (nn.Module): The module that has the heads.
        parts (Sequence[str]): Attributes that hold heads: one head each,
            several, or none.

    Raises:
        ValueError: If a head has another number of classes.
    """
    count = len(dataset.metainfo['classes'])
    for part in parts:
        head = getattr(owner, part, None)
        for one in (head if hasattr(head, '__iter__') else [head]):
            classes = getattr(one, 'num_classes', count)
            if classes != count:
                raise ValueError(
                    f'the {name} data has {count} classes, but {part} has '
                    f'num_classes={classes}; set it to {count}')
