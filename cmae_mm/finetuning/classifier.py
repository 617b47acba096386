"""Classifiers: config, predictions and metrics."""
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..config import load_config
from ..datasets.decode import is_colour, make_settings
from ..evaluation.data import eval_pipeline
from .data import LabelledData
from .model import FinetunedModel, Found, place_windows
from .pictures import draw_confusion, draw_sheet, to_picture
from .recipe import Run, apply_recipe

_BASE = 'finetune/vit-b_pt300e_100e_in1k'
# Smallest score of a label in multi-label models.
THRESHOLD = 0.5
# Number of mistakes in a sheet.
_MOST_SHOWN = 30


def make_config(encoder: Mapping[str, Any], data: LabelledData,
                run: Run) -> Config:
    """Build the config of a classifier.

    Args:
        encoder (Mapping[str, Any]): See :func:`~cmae_mm.finetune`.
        data (LabelledData): The labelled images.
        run (Run): The settings.

    Returns:
        Config: For mmengine's runner.
    """
    cfg = load_config(_BASE)
    recipe, images = run.recipe, encoder['images'] or {}
    size, count = encoder['backbone']['img_size'], len(data.classes)
    multilabel = data.task == 'multilabel'
    cfg.data_preprocessor = dict(
        type='ChannelClsDataPreprocessor',
        num_classes=count,
        mean=encoder['mean'], std=encoder['std'],
        dtype=images.get('dtype', 'uint8'),
        to_rgb=make_settings(**images).is_bgr,
        to_onehot=recipe.mixup and not multilabel)
    _set_model(cfg.model, encoder, count, run, multilabel)
    augmentation = [t for t in cfg.train_pipeline if recipe.augment
                    and is_colour(dict(images))
                    and t.type in ('RandAugment', 'RandomErasing')]
    for name in ('train', 'val'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=recipe.batch_size,
                      pin_memory=torch.cuda.is_available())
        loader.dataset.update(
            type='MultiLabelDataset' if multilabel else 'BaseDataset',
            data_root='', data_prefix='')
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='SeedDraws'),
        dict(type='LoadCanvas', size=size,
             crop_ratio_range=(recipe.min_crop, 1.0), **images),
        *augmentation,
        dict(type='PackInputs')]
    cfg.val_dataloader.dataset.pipeline = eval_pipeline(size, images=images)
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.val_evaluator = dict(type='AveragePrecision') if multilabel else dict(
        type='Accuracy', topk=(1, ))
    cfg.test_evaluator = cfg.val_evaluator
    cfg.custom_hooks = [] if multilabel else [dict(type='TransferCheckHook')]
    apply_recipe(cfg, run, data,
                 'multi-label/mAP' if multilabel else 'accuracy/top1', 50)
    if run.frozen:  # layer decay needs layers
        cfg.optim_wrapper.pop('constructor')
        cfg.optim_wrapper.pop('paramwise_cfg')
    return cfg


def _set_model(model: Any, encoder: Mapping[str, Any], count: int,
               run: Run, multilabel: bool) -> None:
    """Set encoder and head."""
    recipe, width = run.recipe, encoder['width']
    model.backbone = dict(encoder['backbone'], drop_path_rate=recipe.drop_path)
    model.head.update(num_classes=count, in_channels=width)
    if multilabel:
        model.head.type = 'MultiLabelLinearClsHead'
        model.head.loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    elif not recipe.augment:
        model.head.loss = dict(type='CrossEntropyLoss')
    if run.frozen:
        hybrid = model.backbone.type == 'TransferConvViT'
        model.backbone.frozen_stages = 3 if hybrid else encoder['depth']
        model.neck = dict(type='ClsBatchNormNeck', input_features=width)
        model.head.init_cfg.std = 0.01
    if multilabel or not recipe.mixup:
        model.pop('train_cfg')


class Prediction(NamedTuple):
    """Prediction for one image.

    Args:
        path (str): Path of the image, or 'image N' for an array.
        label (str | list[str] | None): The class; of a multi-label model the
            list of classes with a score of 0.5 or more; None for an unreadable
            image.
        score (float): Score of the class; of several the highest.
        scores (dict[str, float]): Score of each class, the highest first.
        error (str): Reason why the image is unreadable, '' otherwise.
    """

    path: str
    label: str | list[str] | None
    score: float
    scores: dict[str, float]
    error: str = ''

    def labels(self) -> Sequence[Any]:
        """Return the class, or the classes."""
        return self.label if isinstance(self.label, list) else [self.label]


class FinetunedClassifier(FinetunedModel):
    """A classifier, see :class:`FinetunedModel`."""

    types = frozenset({
        'ImageClassifier', 'TransferViT', 'TransferConvViT', 'LinearClsHead',
        'MultiLabelLinearClsHead', 'ClsBatchNormNeck', 'LabelSmoothLoss',
        'CrossEntropyLoss', 'ChannelClsDataPreprocessor',
        'ClsDataPreprocessor'})
    transforms = ('ResizeImage', 'CenterCrop', 'PackInputs')

    def __init__(self, model: nn.Module, pipeline: Sequence[dict]) -> None:
        super().__init__(model, pipeline)
        self.count = model.head.num_classes
        kind = type(model.head).__name__
        self.task = 'multilabel' if 'MultiLabel' in kind else 'classify'

    def forward(self, images: Tensor) -> Tensor:
        """Compute the score of each class.

        Args:
            images (Tensor): (N, C, S, S), in the units of the images: colours
                as RGB in 0 to 255.

        Returns:
            Tensor: Probabilities, (N, K): of the softmax, or of a sigmoid for
            each class of a multi-label model.
        """
        logits = self.model(self.normalise(images), mode='tensor')
        if self.task == 'multilabel':
            return logits.sigmoid()
        return logits.softmax(dim=1)

    def prepare(self, array: np.ndarray, window: int | None
                ) -> list[Tensor]:
        """Crop an image, or each of its windows, (C, S, S), as RGB."""
        if window is None:
            return [self.crop(array)]
        side, tops, lefts = place_windows(array.shape, window)
        return [self.crop(array[y:y + side, x:x + side])
                for y in tops for x in lefts]

    def crop(self, array: np.ndarray) -> Tensor:
        """Resize and crop a decoded image, (C, S, S), colours as RGB."""
        inputs = self.transform(array)['inputs']
        return inputs[[2, 1, 0]] if self.reader.settings.is_bgr else inputs

    def score(self, crops: Sequence[Tensor], batch_size: int = 32
              ) -> np.ndarray:
        """Compute the scores of crops, float32, (N, K)."""
        found = [np.empty((0, self.count), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(crops), batch_size):
                batch = torch.stack([*crops[start:start + batch_size]])
                found.append(self(batch.to(self.device)).cpu().numpy())
        return np.concatenate(found)

    def infer(self, images: Sequence[list[Tensor]], batch_size: int,
              window: int | None) -> Iterator[np.ndarray]:
        """Yield the scores of images, (K, ).

        Scores of windows are averaged; multi-label models use the highest.
        """
        scores = self.score([x for crops in images for x in crops], batch_size)
        for crops in images:
            own, scores = scores[:len(crops)], scores[len(crops):]
            yield own.max(0) if self.task == 'multilabel' else own.mean(0)

    def name_result(self, found: Found) -> Prediction:
        """Convert scores to class names."""
        if found.error:
            return Prediction(found.name, None, 0., {}, found.error)
        ranked = {self.classes[i]: float(found.result[i])
                  for i in np.argsort(-found.result, kind='stable')}
        best = next(iter(ranked))
        label: Any = best
        if self.task == 'multilabel':
            label = [c for c, s in ranked.items() if s >= THRESHOLD]
        return Prediction(found.name, label, ranked[best], ranked)

    def measure(self, data: LabelledData, name: str, folder: Path
                ) -> tuple[dict[str, Any], str]:
        """Measure a classifier; draw confusion matrix and mistakes."""
        part = data.parts[name]
        numbers, results = zip(*(
            (number, found.result) for number, found in self.run_part(part)))
        scores, part = np.stack(results), part.select(numbers, part.place)
        truth = np.array([[c in names for c in self.classes]
                          for names in part.labels])
        draw_sheet(folder / f'{name}_mistakes.png', 'true as predicted', [
            (to_picture(self.crop(self.read(part.records[index], False))),
             _describe_mistake(truth[index], number, scores[index, number],
                               self.classes))
            for index, number in find_mistakes(
                scores, truth, self.task)[:_MOST_SHOWN]])
        if self.task == 'multilabel':
            found = measure_multilabel(scores, truth, self.classes)
            return found, (f'mAP {found["mAP"]:.1f} % (constant scores: '
                           f'{found["majority"]:.1f} %)')
        found = measure_classes(scores, truth, self.classes)
        draw_confusion(folder / f'{name}_confusion.png',
                       np.array(found['confusion']), self.classes)
        return found, (f'accuracy {found["accuracy"]:.1f} %, balanced '
                       f'{found["balanced_accuracy"]:.1f} % (majority class: '
                       f'{found["majority"]:.1f} %)')


def measure_classes(scores: np.ndarray, truth: np.ndarray,
                    classes: Sequence[str]) -> dict[str, Any]:
    """Measure a classifier with scikit-learn.

    Args:
        scores (np.ndarray): Probabilities, (N, K).
        truth (np.ndarray): Whether an image has a class, bool, (N, K).
        classes (Sequence[str]): Names of the K classes.

    Returns:
        dict[str, Any]: ``images``, their number; ``accuracy``,
        ``balanced_accuracy`` and ``majority``, the accuracy of always
        predicting the most frequent class, in percent; ``per_class``,
        precision, recall, F1 and number of images;
        ``confusion``, a row for each true class.
    """
    from sklearn.metrics import (confusion_matrix,
                                 precision_recall_fscore_support)
    true, predicted = truth.argmax(1), scores.argmax(1)
    numbers = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=numbers, zero_division=0)
    return dict(
        images=len(truth),
        accuracy=100 * float((true == predicted).mean()),
        balanced_accuracy=100 * float(recall[support > 0].mean()),
        majority=100 * float(support.max() / support.sum()),
        per_class={
            name: dict(precision=100 * float(p), recall=100 * float(r),
                       f1=100 * float(f), images=int(n))
            for name, p, r, f, n in zip(
                classes, precision, recall, f1, support)},
        confusion=confusion_matrix(true, predicted, labels=numbers).tolist())


def measure_multilabel(scores: np.ndarray, truth: np.ndarray,
                       classes: Sequence[str]) -> dict[str, Any]:
    """Measure a multi-label classifier with scikit-learn.

    Args:
        scores (np.ndarray): Probabilities, (N, K).
        truth (np.ndarray): Whether an image has a class, bool, (N, K).
        classes (Sequence[str]): Names of the K classes.

    Returns:
        dict[str, Any]: ``images``, their number; ``mAP`` over the classes with
        images, ``majority``, the mAP of a constant score, in percent;
        ``per_class``, average precision,
        F1 and number of images.
    """
    from sklearn.metrics import average_precision_score, f1_score
    counts = truth.sum(axis=0)
    used = counts > 0
    precision = np.zeros(len(classes))
    precision[used] = average_precision_score(
        truth[:, used], scores[:, used], average=None)
    f1 = f1_score(truth, scores >= THRESHOLD, average=None, zero_division=0)
    return dict(
        images=len(truth),
        mAP=100 * float(precision[used].mean()),
        majority=100 * float((counts[used] / len(truth)).mean()),
        per_class={
            name: dict(average_precision=100 * float(p), f1=100 * float(f),
                       images=int(n))
            for name, p, f, n in zip(classes, precision, f1, counts)})


def find_mistakes(scores: np.ndarray, truth: np.ndarray,
                  task: str) -> list[tuple[int, int]]:
    """Find mistakes, the most confident first.

    Args:
        scores (np.ndarray): Probabilities, (N, K).
        truth (np.ndarray): Whether an image has a class, bool, (N, K).
        task (str): 'classify' or 'multilabel'.

    Returns:
        list[tuple]: Numbers of image and class.
    """
    if task == 'classify':
        predicted = scores.argmax(1)
        rows = np.arange(len(predicted))
        wrong = ~truth[rows, predicted]
        error = np.where(wrong, scores[rows, predicted], 0)
    else:
        errors = np.abs(scores - truth)
        predicted, error = errors.argmax(1), errors.max(1)
        error = np.where(error >= THRESHOLD, error, 0)
    order = np.argsort(-error, kind='stable')
    return [(int(i), int(predicted[i])) for i in order if error[i] > 0]


def _describe_mistake(truth: np.ndarray, number: int, score: float,
                      classes: Sequence[str]) -> str:
    name = classes[number]
    if truth[number]:
        return f'{name} missed, {score:.2f}'
    true = '|'.join(c for c, t in zip(classes, truth) if t)
    return f'{true or "nothing"} as {name} {score:.2f}'
