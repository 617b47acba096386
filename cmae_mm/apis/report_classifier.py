"""Scores and pictures of a classifier on labelled images."""
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from ..datasets.names import encode_name
from ..files import write_file
from ..visualization.image_grid import save_picture
from .finished_model import THRESHOLD, FinishedModel, draw_crops
from .labelled_data import LabelledData, Part

METRICS_NAME = 'metrics.json'
# Mistakes in a sheet.
_MOST_SHOWN = 30
# Up to so many classes the confusion matrix has numbers.
_MOST_NUMBERED = 25


class Scored(NamedTuple):
    """Scores of the images of a part.

    Args:
        records (List[Dict[str, Any]]): N records.
        scores (np.ndarray): Probabilities, (N, K).
        truth (np.ndarray): Whether an image has a class, bool, (N, K).
    """

    records: List[Dict[str, Any]]
    scores: np.ndarray
    truth: np.ndarray


def report_classifier(model: FinishedModel, data: LabelledData, folder: Path,
                      facts: Mapping[str, Any]) -> Dict[str, Any]:
    """Score a classifier on the validation and test images.

    Writes ``metrics.json``, and for each part a confusion matrix and a sheet
    of the most confident mistakes. Prints one line for each part.

    Args:
        model (FinishedModel): The model.
        data (LabelledData): The labelled images.
        folder (Path): Folder to write to.
        facts (Mapping[str, Any]): Further entries of ``metrics.json``.

    Returns:
        Dict[str, Any]: The content of ``metrics.json``.
    """
    metrics: Dict[str, Any] = dict(
        facts, task=model.task, classes=model.classes,
        train=dict(images=len(data.parts['train'].records),
                   list='train.json'))
    for name in ('val', 'test'):
        if name not in data.parts:
            continue
        scored = score_part(model, data.parts[name])
        measure = (measure_multilabel if model.task == 'multilabel'
                   else measure_classes)
        found = dict(images=len(scored.records), list=f'{name}.json',
                     place=data.parts[name].place,
                     **measure(scored, model.classes))
        metrics[name] = found
        if model.task == 'classify':
            draw_confusion(folder / f'{name}_confusion.png',
                           np.array(found['confusion']), model.classes)
        draw_mistakes(folder / f'{name}_mistakes.png', model, scored)
        print(f'{name:<15}{_describe(found)}', flush=True)
    write_file(folder / METRICS_NAME,
               json.dumps(metrics, indent=1, default=str) + '\n')
    return metrics


def score_part(model: FinishedModel, part: Part) -> Scored:
    """Compute the scores of all images of a part.

    Args:
        model (FinishedModel): The model.
        part (Part): The images, all of them readable.

    Returns:
        Scored: Scores and truth.
    """
    scores = []
    for names, crops, errors in model.read(part.records, 32):
        wrong = [i for i, error in enumerate(errors) if error]
        if wrong:
            raise ValueError(f'{names[wrong[0]]}: {errors[wrong[0]]}')
        scores.append(model.score(crops))
    truth = np.array([[c in names for c in model.classes]
                      for names in part.labels])
    return Scored(part.records, np.concatenate(scores), truth)


def measure_classes(scored: Scored, classes: Sequence[str]) -> Dict[str, Any]:
    """Measure a classifier, by scikit-learn.

    Args:
        scored (Scored): Scores and truth.
        classes (Sequence[str]): Names of the K classes.

    Returns:
        Dict[str, Any]: ``accuracy``, ``balanced_accuracy`` and ``majority``,
        the accuracy of always predicting the most frequent class, in percent;
        ``per_class``, precision, recall and number of images; ``confusion``,
        a row for each true class.
    """
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        precision_recall_fscore_support,
        recall_score,
    )
    true, predicted = scored.truth.argmax(1), scored.scores.argmax(1)
    numbers = np.arange(len(classes))
    precision, recall, _, support = precision_recall_fscore_support(
        true, predicted, labels=numbers, zero_division=0)
    balanced = recall_score(true, predicted, labels=np.unique(true),
                            average='macro', zero_division=0)
    return dict(
        accuracy=100 * float(accuracy_score(true, predicted)),
        balanced_accuracy=100 * float(balanced),
        majority=100 * float(support.max() / support.sum()),
        per_class={
            name: dict(precision=100 * float(p), recall=100 * float(r),
                       images=int(n))
            for name, p, r, n in zip(classes, precision, recall, support)},
        confusion=confusion_matrix(true, predicted, labels=numbers).tolist())


def measure_multilabel(scored: Scored, classes: Sequence[str]
                       ) -> Dict[str, Any]:
    """Measure a multi-label classifier, by scikit-learn.

    Args:
        scored (Scored): Scores and truth.
        classes (Sequence[str]): Names of the K classes.

    Returns:
        Dict[str, Any]: ``mAP`` over the classes with images, ``majority``, the
        mAP of a constant score, in percent; ``per_class``, average precision,
        F1 and number of images.
    """
    from sklearn.metrics import average_precision_score, f1_score
    truth, scores = scored.truth, scored.scores
    counts = truth.sum(axis=0)
    used = counts > 0
    precision = np.zeros(len(classes))
    precision[used] = average_precision_score(
        truth[:, used], scores[:, used], average=None)
    f1 = f1_score(truth, scores >= THRESHOLD, average=None, zero_division=0)
    return dict(
        mAP=100 * float(precision[used].mean()),
        majority=100 * float((counts[used] / len(truth)).mean()),
        per_class={
            name: dict(average_precision=100 * float(p), f1=100 * float(f),
                       images=int(n))
            for name, p, f, n in zip(classes, precision, f1, counts)})


def _describe(found: Mapping[str, Any]) -> str:
    """Describe scores in one line."""
    if 'mAP' in found:
        return (f'mAP {found["mAP"]:.1f} % on {found["images"]:,} images '
                f'(constant scores: {found["majority"]:.1f} %)')
    return (f'accuracy {found["accuracy"]:.1f} %, balanced '
            f'{found["balanced_accuracy"]:.1f} % on {found["images"]:,} images'
            f' (majority class: {found["majority"]:.1f} %)')


def draw_confusion(file: Path, matrix: np.ndarray,
                   classes: Sequence[str]) -> None:
    """Draw a confusion matrix, a row for each true class.

    Args:
        file (Path): PNG file.
        matrix (np.ndarray): Numbers of images, (K, K).
        classes (Sequence[str]): Names of the K classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image
    from sklearn.metrics import ConfusionMatrixDisplay
    count = len(classes)
    numbered = count <= _MOST_NUMBERED
    side = min(max(4., 2 + 0.45 * count), 20.)
    figure = Figure(figsize=(side, side), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    # Names in $...$ are not formulas.
    names = [encode_name(c).replace('$', r'\$') for c in classes]
    shown = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shown, display_labels=names)
    display.plot(ax=figure.add_subplot(), cmap='Blues', colorbar=not numbered,
                 include_values=False, xticks_rotation='vertical')
    display.im_.set_clim(0, 1)
    display.ax_.set(xlabel='predicted', ylabel='true')
    if numbered:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                dark = shown[row, column] > 0.5
                display.ax_.text(column, row, number, ha='center',
                                 va='center',
                                 color='white' if dark else 'black')
    canvas.draw()
    save_picture(file, Image.fromarray(
        np.asarray(canvas.buffer_rgba())[..., :3].copy()))


def draw_mistakes(file: Path, model: FinishedModel, scored: Scored) -> int:
    """Draw the most confident mistakes.

    Args:
        file (Path): PNG file; removed if there are no mistakes.
        model (FinishedModel): The model.
        scored (Scored): Its scores.

    Returns:
        int: The number of images in the sheet.
    """
    found = find_mistakes(scored, model.task)[:_MOST_SHOWN]
    if not found:
        file.unlink(missing_ok=True)
        return 0
    images = []
    for index, number in found:
        true = [c for c, t in zip(model.classes, scored.truth[index]) if t]
        score = scored.scores[index, number]
        name = model.classes[number]
        text = f'{"|".join(true)} as {name} {score:.2f}'
        if scored.truth[index, number]:
            text = f'{name} missed, {score:.2f}'
        images.append((scored.records[index], text))
    draw_crops(model, file, 'true as predicted', images)
    return len(images)


def find_mistakes(scored: Scored, task: str) -> List[Tuple[int, int]]:
    """Find mistakes, the most confident first.

    Args:
        scored (Scored): Scores and truth.
        task (str): 'classify' or 'multilabel'.

    Returns:
        List[tuple]: Numbers of image and class.
    """
    if task == 'classify':
        predicted = scored.scores.argmax(1)
        rows = np.arange(len(predicted))
        wrong = ~scored.truth[rows, predicted]
        error = np.where(wrong, scored.scores[rows, predicted], 0)
    else:
        errors = np.abs(scored.scores - scored.truth)
        predicted, error = errors.argmax(1), errors.max(1)
        error = np.where(error >= THRESHOLD, error, 0)
    order = np.argsort(-error, kind='stable')
    return [(int(i), int(predicted[i])) for i in order if error[i] > 0]
