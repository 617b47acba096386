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
        name (str): Of the data set.
        dataset (BaseDataset): Its classes count.
        owner (nn.Module): What has the heads.
        parts (Sequence[str]): Names of the heads; each one head, several, or
            none.

    Raises:
        ValueError: If a head has another number.
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
