"""Classifiers on frozen features: k-NN, linear, low-shot, and accuracies."""
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.source import ImageSource
from . import KS, LRS, TEMPERATURE
from .data import EvaluationDataError, draw_shots, read_split
from .features import FeatureSet

# Accuracies

# Largest test set with an interval.
LARGE_TEST_SET = 10_000


class Score(NamedTuple):
    """Accuracies in percent.

    Args:
        top1 (float): Percentage of correctly classified images.
        balanced (float): Mean recall of the classes.
        interval (tuple[float, float], optional): 95% interval of ``top1`` on
            small test sets.
    """

    top1: float
    balanced: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.interval is None:
            return f'{self.top1:.2f}'
        low, high = self.interval
        return f'{self.top1:.2f} [{low:.2f}, {high:.2f}]'


def score(predicted: Tensor, labels: Tensor) -> Score:
    """Score predictions.

    Args:
        predicted (Tensor): Predicted classes, (N, ).
        labels (Tensor): True classes, (N, ).

    Returns:
        Score: The accuracy, with an interval if there are fewer than 10,000
        images.
    """
    correct = (predicted == labels).cpu().numpy()
    interval = bootstrap_interval(correct) if (
        len(correct) < LARGE_TEST_SET) else None
    return Score(100 * correct.mean(), balanced_accuracy(predicted, labels),
                 interval)


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Compute the mean recall of classes with images, in percent.

    Args:
        predicted (Tensor): Predicted classes, (N, ).
        labels (Tensor): True classes, (N, ).

    Returns:
        float: The balanced accuracy, as in scikit-learn.
    """
    from sklearn.metrics import recall_score
    true = labels.cpu().numpy()
    return 100 * float(recall_score(
        true, predicted.cpu().numpy(), labels=np.unique(true),
        average='macro', zero_division=0))


def bootstrap_interval(correct: np.ndarray,
                       confidence: float = 0.95,
                       resamples: int = 10_000,
                       seed: int = 0) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of an accuracy.

    Args:
        correct (np.ndarray): Whether each image is classified correctly, bool,
            (N, ).
        confidence (float): Confidence level of the interval. Defaults to 0.95.
        resamples (int): Number of bootstrap resamples. Defaults to 10,000.
        seed (int): Seed of the resampling. Defaults to 0.

    Returns:
        tuple[float, float]: Lower and upper end, in percent.
    """
    count = len(correct)
    # Hits among N images drawn with replacement are binomial.
    hits = np.random.default_rng(seed).binomial(count, correct.mean(),
                                                resamples)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(100 * hits / count, [tail, 100 - tail])
    return float(low), float(high)


def mean_precision(scores: Tensor, labels: Tensor) -> float:
    """Compute the mAP, in percent, over the classes with images.

    Args:
        scores (Tensor): Scores of the classes, (N, K).
        labels (Tensor): Whether an image has a class, bool, (N, K).

    Returns:
        float: The mean of scikit-learn's average precision.
    """
    from sklearn.metrics import average_precision_score
    used = labels.any(dim=0)
    return 100 * float(average_precision_score(
        labels[:, used].cpu().numpy(), scores[:, used].cpu().numpy()))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in aligned columns."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for number, row in enumerate(cells):
        print('  '.join(c.ljust(w) for c, w in zip(row, widths)).rstrip())
        if number == 0:
            print('  '.join('-' * w for w in widths))


def report_sweep(name: str, predicted: dict[float, Tensor],
                 labels: Tensor) -> dict[str, Any]:
    """Print and return the accuracy for each value of a setting.

    Args:
        name (str): Name of the setting.
        predicted (dict[float, Tensor]): Predicted classes, (N, ), by value of
            the setting; of several labels the score of each, (N, K).
        labels (Tensor): True classes, (N, ), or of several labels bool,
            (N, K).

    Returns:
        dict[str, Any]: Of several labels ``mAP`` of the best value and that
        of each value, in percent. Otherwise ``top1`` and ``balanced`` of the
        best value, that value as ``best_<name>``, its ``interval``, and the
        top-1 accuracy of each value.
    """
    header = ['mAP %'] if labels.dim() == 2 else ['top-1 %', 'balanced %']
    scores: dict[float, Any] = {
        value: Score(mean_precision(p, labels), 0.) if len(header) == 1 else
        score(p, labels) for value, p in predicted.items()}
    best = max(scores, key=lambda value: scores[value].top1)
    print_table([name, *header], [
        [f'{value:g}{" *" if value == best else ""}', scored,
         f'{scored.balanced:.2f}'][:1 + len(header)]
        for value, scored in scores.items()])
    found = scores[best]._asdict() if len(header) == 2 else dict(
        mAP=scores[best].top1)
    return {**found, f'best_{name}': best, **{
        f'{value:g}': scored.top1 for value, scored in scores.items()}}


# Checks before the extraction of features


def check_ks(ks: Sequence[int], count: int, what: str) -> None:
    """Check that there are enough images or patches for the smallest k.

    Args:
        ks (Sequence[int]): Numbers of neighbours; none is no error.
        count (int): Number of images or patches.
        what (str): Their name.

    Raises:
        EvaluationDataError: If all numbers are above it.
    """
    if ks and min(ks) > count:
        raise EvaluationDataError(
            f'k-NN with k={min(ks)} or more needs at least that many {what}, '
            f'but there are {count}')


def check_training_images(train: ImageSource, knn: Mapping[str, Any] = {},
                          linear: Mapping[str, Any] = {},
                          low_shot: Mapping[str, Any] = {}) -> None:
    """Check that there are enough training images for some evaluations.

    Args:
        train (ImageSource): The labelled images.
        knn (Mapping[str, Any]): See :func:`report_probes`.
        linear (Mapping[str, Any]): See there.
        low_shot (Mapping[str, Any]): See there.

    Raises:
        EvaluationDataError: If there are not, the images have several labels
            each, or a split file is missing or does not fit.
        ValueError: If a class has fewer images than a number of ``shots``.
    """
    labels = np.asarray(train.labels)
    if len(np.unique(labels)) < 2:
        raise EvaluationDataError(
            f'the training images of {train.place} have a single class; at '
            'least two are needed')
    if labels.ndim == 2 and low_shot:
        raise EvaluationDataError(
            f'the images of {train.place} have several labels each; use `cmae '
            'knn` or `cmae linear`, which measure mAP')
    check_ks(knn.get('ks', ()), len(train), 'training images')
    for count in low_shot.get('shots', ()):
        draw_shots(labels.tolist(), count, seed=0)
    for split in low_shot.get('splits', ()):
        if len(np.unique(labels[read_split(str(split), train.names)])) < 2:
            raise EvaluationDataError(
                f'the images of {split} have a single class; at least two are '
                'needed')


# k-nearest neighbours


@torch.no_grad()
def knn_predict(train_features: Tensor,
                train_labels: Tensor,
                test_features: Tensor,
                ks: Sequence[int] = KS,
                temperature: float = TEMPERATURE,
                chunk_size: int = 1024) -> dict[int, Tensor]:
    """Classify by votes of the k most similar training features.

    Similarity is the cosine; votes have the weight ``exp(cosine /
    temperature)``. Similarities are computed in float32 in chunks, so features
    may have half precision.

    Args:
        train_features (Tensor): Training features, (M, D).
        train_labels (Tensor): Their classes, numbered from 0, (M, ), or
            whether they have each of several labels, bool, (M, K).
        test_features (Tensor): Features to classify, (N, D).
        ks (Sequence[int]): Numbers of neighbours; those above M are skipped.
            Defaults to (5, 10, 20, 50, 100).
        temperature (float): Temperature of the votes. Defaults to 0.07.
        chunk_size (int): Number of test features that are compared at once,
            with 64 times as many training features. Defaults to 1024.

    Returns:
        dict[int, Tensor]: Predicted classes, (N, ), by k; of several labels
        the share of the votes for each, (N, K).

    Raises:
        EvaluationDataError: If there are fewer training features than the
            smallest k.
    """
    check_ks(ks, len(train_features), 'training features')
    ks = sorted(k for k in set(ks) if k <= len(train_features))
    several = train_labels.dim() == 2
    num_classes = 0 if several else int(train_labels.max()) + 1
    numbers = torch.arange(len(train_labels), device=train_labels.device)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for queries in test_features.split(chunk_size):
        queries = F.normalize(queries.float(), dim=1)
        similarity, labels = _nearest(
            queries, train_features, numbers if several else train_labels,
            ks[-1], 64 * chunk_size)
        # The largest weight is 1: no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        for k in ks:
            if several:
                shares = F.normalize(weight[:, :k], p=1, dim=1)
                predicted[k].append(torch.einsum(
                    'nk,nkc->nc', shares,
                    train_labels[labels[:, :k]].to(shares)))
                continue
            votes = weight.new_zeros(len(queries), num_classes)
            votes.scatter_add_(1, labels[:, :k], weight[:, :k])
            predicted[k].append(votes.argmax(dim=1))
    return {k: torch.cat(p) for k, p in predicted.items()}


def _nearest(queries: Tensor, features: Tensor, labels: Tensor, k: int,
             chunk_size: int) -> tuple[Tensor, Tensor]:
    """Find similarities and labels of the k nearest, nearest first."""
    best = queries.new_empty(len(queries), 0)
    best_labels = labels.new_empty(len(queries), 0)
    for start in range(0, len(features), chunk_size):
        chunk = slice(start, start + chunk_size)
        part = F.normalize(features[chunk].float(), dim=1)
        similarity, index = (queries @ part.t()).topk(
            min(k, len(part)), dim=1)
        best = torch.cat([best, similarity], dim=1)
        best_labels = torch.cat([best_labels, labels[chunk][index]], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        best_labels = best_labels.gather(1, order)
    return best, best_labels


def knn_accuracy(train_features: Tensor, train_labels: Tensor,
                 test_features: Tensor, test_labels: Tensor,
                 **kwargs: Any) -> dict[int, float]:
    """Measure the top-1 accuracy of :func:`knn_predict`.

    Args:
        train_features (Tensor): Training features, (M, D).
        train_labels (Tensor): Their classes, numbered from 0, (M, ).
        test_features (Tensor): Features to classify, (N, D).
        test_labels (Tensor): Their classes, (N, ).
        **kwargs: Other arguments of :func:`knn_predict`.

    Returns:
        dict[int, float]: Accuracy in percent, by k.
    """
    predicted = knn_predict(train_features, train_labels, test_features,
                            **kwargs)
    return {
        k: 100 * (p == test_labels).float().mean().item()
        for k, p in predicted.items()
    }


# Linear classifiers, one for each learning rate


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise features by the training features' mean and variance.

    This is what a BatchNorm without affine parameters computes.

    Args:
        train (Tensor): Training features, (M, D).
        test (Tensor): Test features, (N, D).

    Returns:
        tuple[Tensor, Tensor]: Both, normalised.
    """
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    std = std.clamp_min(1e-6)
    return (train - mean) / std, (test - mean) / std


@torch.enable_grad()
def linear_sweep(train_features: Tensor,
                 train_labels: Tensor,
                 test_features: Tensor,
                 lrs: Sequence[float] = LRS,
                 epochs: int = 100,
                 batch_size: int = 1024,
                 momentum: float = 0.9,
                 weight_decay: float = 0.,
                 seed: int = 0) -> dict[float, Tensor]:
    """Train one linear classifier per learning rate, in parallel.

    SGD with momentum and a cosine schedule on standardised features; the
    classifiers see the same batches and do not influence each other.

    Args:
        train_features (Tensor): Training features, (M, D).
        train_labels (Tensor): Their classes, numbered from 0, (M, ), or
            whether they have each of several labels, bool, (M, K).
        test_features (Tensor): Test features, (N, D).
        lrs (Sequence[float]): Learning rates for a batch of 256; they are
            scaled to ``batch_size``. Defaults to ten from 1e-4 to 3.
        epochs (int): Number of passes over the training features. Defaults to
            100.
        batch_size (int): Number of features in a batch. Defaults to 1024.
        momentum (float): Momentum of SGD. Defaults to 0.9.
        weight_decay (float): Weight decay, of weights and not of biases.
            Defaults to 0.
        seed (int): Seed of the order of images. Defaults to 0.

    Returns:
        dict[float, Tensor]: Predicted classes, (N, ), by learning rate; of
        several labels the logit of each, (N, K).

    Raises:
        ValueError: If there are no features or learning rates.
    """
    if not len(train_features) or not len(test_features) or not lrs:
        raise ValueError(
            'a linear probe needs training and test features and a learning '
            f'rate, but got {len(train_features)}, {len(test_features)} and '
            f'{len(lrs)}')
    train_features, test_features = standardise(train_features.float(),
                                                test_features.float())
    device = train_features.device
    count, dims = train_features.shape
    several = train_labels.dim() == 2
    num_classes = train_labels.shape[1] if several else (
        int(train_labels.max()) + 1)
    batch_size = min(batch_size, count)
    steps = epochs * math.ceil(count / batch_size)
    # One classifier per learning rate, initialised with zeros.
    weights = [
        nn.Parameter(torch.zeros(num_classes, dims, device=device))
        for _ in lrs
    ]
    biases = [
        nn.Parameter(torch.zeros(num_classes, device=device)) for _ in lrs
    ]
    groups = []
    for lr, weight, bias in zip(lrs, weights, biases):
        lr = lr * batch_size / 256
        groups += [
            dict(params=[weight], lr=lr, weight_decay=weight_decay),
            dict(params=[bias], lr=lr)
        ]
    optimizer = torch.optim.SGD(groups, lrs[0], momentum=momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).to(device)
        for index in order.split(batch_size):
            x, labels = train_features[index], train_labels[index]
            # One product for all classifiers: (B, R * C), R of C classes.
            logits = F.linear(x, torch.cat(weights), torch.cat(biases))
            # Each classifier's loss is the mean over the batch.
            measure = F.binary_cross_entropy_with_logits if several else (
                F.cross_entropy)
            labels = labels.repeat_interleave(len(lrs), dim=0)
            loss = measure(
                logits.view(-1, num_classes),
                labels.to(logits) if several else labels,
                reduction='sum') / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        scores = {
            lr: torch.cat([F.linear(x, weight, bias)
                           for x in test_features.split(65536)])
            for lr, weight, bias in zip(lrs, weights, biases)}
    return scores if several else {
        lr: one.argmax(dim=1) for lr, one in scores.items()}


# Logistic regression on a few labels per class


def fit_logistic_regression(train: FeatureSet, test: FeatureSet,
                            inverse_penalty: float = 1.) -> Tensor:
    """Classify by scikit-learn's logistic regression on frozen features.

    Features are standardised by the training features first.

    Args:
        train (FeatureSet): Features of a few labelled images.
        test (FeatureSet): Features to classify.
        inverse_penalty (float): Inverse of the L2 penalty's strength,
            scikit-learn's ``C``. Defaults to 1.

    Returns:
        torch.Tensor: Predicted classes, (N, ).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=inverse_penalty, max_iter=5000))
    with warnings.catch_warnings():  # one label per class is meant
        warnings.filterwarnings('ignore', 'The number of unique classes')
        classifier.fit(train.features.double().cpu().numpy(),
                       train.labels.cpu().numpy())
    predicted = classifier.predict(test.features.double().cpu().numpy())
    return torch.from_numpy(predicted).to(test.labels.device)


def low_shot(train: FeatureSet, test: FeatureSet, shots: Sequence[int],
             trials: int = 5,
             inverse_penalty: float = 1.) -> dict[int, list[Tensor]]:
    """Classify by logistic regression on a few images per class.

    Args:
        train (FeatureSet): Training features.
        test (FeatureSet): Features to classify.
        shots (Sequence[int]): Numbers of images per class.
        trials (int): Number of draws, with seeds from 0. Defaults to 5.
        inverse_penalty (float): Inverse of the L2 penalty's strength,
            scikit-learn's ``C``. Defaults to 1.

    Returns:
        dict[int, list[Tensor]]: Predicted classes of each draw, by
        number of images per class.
    """
    labels = train.labels.cpu().numpy()
    return {
        count: [fit_logistic_regression(
            _select(train, draw_shots(labels, count, seed)), test,
            inverse_penalty) for seed in range(trials)]
        for count in shots}


def _select(features: FeatureSet, index: list[int]) -> FeatureSet:
    return FeatureSet(features.features[index], features.labels[index])


def report_probes(train: FeatureSet, val: FeatureSet, names: Sequence[str],
                  knn: Mapping[str, Any] = {}, linear: Mapping[str, Any] = {},
                  low_shot: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Print the table of each evaluation with arguments.

    Args:
        train (FeatureSet): Training features.
        val (FeatureSet): Features to classify.
        names (Sequence[str]): Names of the training images.
        knn (Mapping[str, Any]): Arguments of :func:`knn_predict`.
        linear (Mapping[str, Any]): Arguments of :func:`linear_sweep`.
        low_shot (Mapping[str, Any]): Arguments of :func:`report_low_shot`.

    Returns:
        dict[str, Any]: Results of 'knn', 'linear' and 'low-shot', see
        :func:`report_sweep` and :func:`report_low_shot`.
    """
    found: dict[str, Any] = {}
    images = (f'{len(train.labels)} training and {len(val.labels)} validation '
              'images')
    if knn:
        predicted = knn_predict(*train, val.features, **knn)
        print(f'k-NN, {images}')
        skipped = [str(k) for k in knn['ks'] if k not in predicted]
        if skipped:
            print(f'k = {", ".join(skipped)}: skipped, above the number of '
                  'training images')
        found['knn'] = report_sweep('k', predicted, val.labels)
    if linear:
        scores = linear_sweep(*train, val.features, **linear)
        print(f'linear probe, {images}')
        found['linear'] = report_sweep('lr', scores, val.labels)
    if low_shot:
        found['low-shot'] = report_low_shot(train, val, names, **low_shot)
    return found


def report_low_shot(train: FeatureSet, test: FeatureSet,
                    names: Sequence[str], shots: Sequence[int], trials: int,
                    splits: Sequence[Any] = (), inverse_penalty: float = 1.
                    ) -> dict[str, Any]:
    """Print the accuracy for each number of labels, and return them.

    Args:
        train (FeatureSet): See :func:`low_shot`.
        test (FeatureSet): See :func:`low_shot`.
        names (Sequence[str]): Names of the training images. Unreadable ones
            of a split file are left out.
        shots (Sequence[int]): See :func:`low_shot`.
        trials (int): See :func:`low_shot`.
        splits (Sequence[str | PathLike]): Split files. Defaults to none.
        inverse_penalty (float): See :func:`low_shot`. Defaults to 1.

    Returns:
        dict[str, Any]: Mean top-1 accuracy by number of labels, its standard
        deviation as ``<number>_std``, mean balanced accuracy as
        ``<number>_balanced``; likewise of each split file, without standard
        deviation.
    """
    result: dict[str, Any] = {}
    rows = []
    for count, draws in low_shot(train, test, shots, trials,
                                 inverse_penalty).items():
        top1 = [score(found, test.labels).top1 for found in draws]
        balanced = statistics.mean(
            balanced_accuracy(found, test.labels) for found in draws)
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.
        mean = statistics.mean(top1)
        rows.append([f'{count} per class', f'{mean:.2f} +- {spread:.2f}',
                     f'{balanced:.2f}'])
        result.update({str(count): mean, f'{count}_std': spread,
                       f'{count}_balanced': balanced})
    for split in splits:
        name = Path(split).stem
        few = _select(train, read_split(str(split), names, strict=False))
        found = fit_logistic_regression(few, test, inverse_penalty)
        scored = score(found, test.labels)
        rows.append([name, str(scored), f'{scored.balanced:.2f}'])
        result.update({name: scored.top1, f'{name}_balanced': scored.balanced})
    print(f'logistic regression, {trials} draws (mean and standard '
          f'deviation), {len(test.labels)} validation images')
    print_table(['labels', 'top-1 %', 'balanced %'], rows)
    return result
