"""What the checks of detection and segmentation data have in common."""
from typing import Any, Dict, Sequence

from mmengine.dataset import BaseDataset


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
