"""Weighted k-nearest-neighbour classification of frozen features."""
from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

KS = (5, 10, 20, 50, 100)


@torch.no_grad()
def knn_predict(train_features: Tensor,
                train_labels: Tensor,
                test_features: Tensor,
                ks: Sequence[int] = KS,
                temperature: float = 0.07,
                chunk_size: int = 1024) -> Dict[int, Tensor]:
    """Classify by the votes of the k most similar training features.

    Similarity is the cosine, and a neighbour's vote weighs ``exp(cosine /
    temperature)``. Similarities are computed in float32, chunk by chunk:
    features may be kept in half precision.

    Args:
        train_features (Tensor): Training features, (M, D).
        train_labels (Tensor): Their classes, numbered from 0, (M, ).
        test_features (Tensor): Features to classify, (N, D).
        ks (Sequence[int]): Numbers of neighbours; those above M are left out.
            Defaults to (5, 10, 20, 50, 100).
        temperature (float): Temperature of the votes. Defaults to 0.07.
        chunk_size (int): Number of test features that are compared at once,
            with 64 times as many training features. Defaults to 1024.

    Returns:
        Dict[int, Tensor]: Predicted classes, (N, ), by k.

    Raises:
        ValueError: If there are no features, or fewer than the smallest k.
    """
    if len(test_features) == 0 or len(train_features) < min(ks):
        raise ValueError(
            f'k-NN with k={min(ks)} or more needs at least that many training '
            f'features and one test feature, but there are '
            f'{len(train_features)} and {len(test_features)}')
    ks = sorted(k for k in set(ks) if k <= len(train_features))
    num_classes = int(train_labels.max()) + 1
    predicted: Dict[int, List[Tensor]] = {k: [] for k in ks}
    for queries in test_features.split(chunk_size):
        queries = F.normalize(queries.float(), dim=1)
        similarity, labels = _nearest(queries, train_features, train_labels,
                                      ks[-1], 64 * chunk_size)
        # The largest weight is 1: no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        for k in ks:
            votes = weight.new_zeros(len(queries), num_classes)
            votes.scatter_add_(1, labels[:, :k], weight[:, :k])
            predicted[k].append(votes.argmax(dim=1))
    return {k: torch.cat(p) for k, p in predicted.items()}


def _nearest(queries: Tensor, features: Tensor, labels: Tensor, k: int,
             chunk_size: int) -> Tuple[Tensor, Tensor]:
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
                 **kwargs: Any) -> Dict[int, float]:
    """Measure the top-1 accuracy of :func:`knn_predict`.

    Args:
        train_features (Tensor): Training features, (M, D).
        train_labels (Tensor): Their classes, numbered from 0, (M, ).
        test_features (Tensor): Features to classify, (N, D).
        test_labels (Tensor): Their classes, (N, ).
        **kwargs: Other arguments of :func:`knn_predict`.

    Returns:
        Dict[int, float]: Accuracy in percent, by k.
    """
    predicted = knn_predict(train_features, train_labels, test_features,
                            **kwargs)
    return {
        k: 100 * (p == test_labels).float().mean().item()
        for k, p in predicted.items()
    }
