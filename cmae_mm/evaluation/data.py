"""Labelled images to evaluate on."""
from typing import Any, Dict, Mapping, Optional

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS

from ..datasets.datasets import count_classes
from ..image_config import image_settings
from .splits import EvaluationDataError

# Where validation images are looked for, beside the training images.
VAL_SPLITS = ('val', 'test')


def eval_pipeline(img_size: int,
                  short_side: Optional[int] = None,
                  images: Optional[Mapping[str, Any]] = None) -> list:
    """Give the usual transforms of evaluation: resizing and a centre crop.

    Args:
        img_size (int): Side of the centre crop in pixels.
        short_side (int, optional): Length in pixels that the image's shorter
            side is resized to before the crop. Defaults to 256/224 of the
            crop.
        images (Mapping[str, Any], optional): How images are decoded,
            arguments of ``LoadImage``. Defaults to None, colours of 8 bits.

    Returns:
        list: Configs of transforms.
    """
    return [
        dict(type='LoadImage', **(images or {})),
        dict(type='ResizeImage',
             scale=short_side or round(img_size * 256 / 224)),
        dict(type='CenterCrop', crop_size=img_size),
        dict(type='PackInputs'),
    ]


def eval_dataset_cfgs(cfg: Config) -> Dict[str, dict]:
    """Give the labelled data sets that belong to a pre-training config.

    They are those of its ``evaluation=dict(train=..., val=...,
    short_side=...)``, each the config of a data set; otherwise class folders
    in the training data's ``data_root``, or rows of a CSV file: those of the
    split ``train``, and of ``val`` or ``test``.
    Data sets without a pipeline get :func:`eval_pipeline`, with images decoded
    as those of training.

    Args:
        cfg (Config): A pre-training config.

    Returns:
        Dict[str, dict]: Configs of ``train`` and ``val``.

    Raises:
        EvaluationDataError: If the config's setting has other keys.
    """
    given = dict(cfg.get('evaluation') or {})
    unknown = set(given) - {'train', 'val', 'short_side'}
    if unknown:
        raise EvaluationDataError(
            'evaluation takes train, val and short_side, but got '
            f'{sorted(unknown)}')
    short_side = given.pop('short_side', None)
    root = cfg.train_dataloader.dataset.get('data_root', '')
    for split, parts in (('train', ('train', )), ('val', VAL_SPLITS)):
        given.setdefault(split, dict(
            type='LabelledDataset', data_root=root, split=parts))
    size = cfg.model.backbone.img_size
    return {
        split: with_pipeline(given[split], size, short_side,
                             image_settings(cfg))
        for split in ('train', 'val')
    }


def with_pipeline(dataset: dict, img_size: int,
                  short_side: Optional[int] = None,
                  images: Optional[Mapping[str, Any]] = None) -> dict:
    """Give a data set the pipeline of evaluation, unless it has its own.

    Args:
        dataset (dict): Config of a data set.
        img_size (int): Side of the centre crop in pixels.
        short_side (int, optional): See :func:`eval_pipeline`. Defaults to
            None.
        images (Mapping[str, Any], optional): See :func:`eval_pipeline`.
            Defaults to None.

    Returns:
        dict: The config with a pipeline.
    """
    if 'pipeline' in dataset:
        return dict(dataset)
    return dict(
        dataset,
        test_mode=True,
        pipeline=eval_pipeline(img_size, short_side, images))


def build_eval_dataset(dataset: Dict[str, Any]) -> BaseDataset:
    """Build a labelled data set.

    Args:
        dataset (dict): Its config.

    Returns:
        BaseDataset: The data set.

    Raises:
        EvaluationDataError: If it has no labels or no images.
    """
    try:
        built = DATASETS.build(dataset)
        count_classes(built)
    except (FileNotFoundError, ValueError) as error:
        raise EvaluationDataError(
            f'no labelled images to evaluate on: {error}; needed are class '
            'folders in train and val (or test), a CSV file with a column '
            'split, or evaluation=dict(train=..., val=...) in the config'
        ) from error
    return built


def check_same_classes(train: BaseDataset, val: BaseDataset) -> None:
    """Check that labels mean the same in both data sets.

    Each data set numbers its own class folders, so that one more or less
    would silently shift all others.

    Args:
        train (BaseDataset): The training data.
        val (BaseDataset): The validation data.

    Raises:
        EvaluationDataError: If the classes differ.
    """
    names = [d.metainfo.get('classes') for d in (train, val)]
    if None in names or tuple(names[0]) == tuple(names[1]):
        return
    parts = []
    for has, lacks, a, b in (('validation', 'training', names[1], names[0]),
                             ('training', 'validation', names[0], names[1])):
        only = sorted(set(a) - set(b))
        if only:
            parts.append(f'{", ".join(map(repr, only[:10]))} in the {has} data'
                         f' and not in the {lacks} data')
    raise EvaluationDataError(
        'the classes differ: '
        f'{"; ".join(parts) or "their order is not the same"}. Both need the '
        'same ones (folders may be empty), since labels are numbered by them')
