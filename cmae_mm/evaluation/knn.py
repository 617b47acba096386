"""Weighted k-nearest-neighbour classification of frozen features."""
from typing import Dict, Sequence

import torch
import torch.nn.functional as F


@torch.no_grad()
def knn_accuracy(train_features: torch.Tensor,
                 train_labels: torch.Tensor,
                 test_features: torch.Tensor,
                 test_labels: torch.Tensor,
                 ks: Sequence[int] = (5, 10, 20, 50, 100),
                 temperature: float = 0.07,
                 chunk_size: int = 1024) -> Dict[int, float]:
    """Classify by the votes of the k most similar training features.

    Similarity is the cosine, and a neighbour's vote weighs ``exp(cosine /
    temperature)``.

    Args:
        train_features (torch.Tensor): (M, D).
        train_labels (torch.Tensor): Classes from 0, (M, ).
        test_features (torch.Tensor): (N, D).
        test_labels (torch.Tensor): (N, ).
        ks (Sequence[int]): Numbers of neighbours; those above M are left out.
            Defaults to (5, 10, 20, 50, 100).
        temperature (float): Defaults to 0.07.
        chunk_size (int): Test features looked at at once. Defaults to 1024.

    Returns:
        Dict[int, float]: Top-1 accuracy in percent by k.

    Raises:
        ValueError: If there are no features, or fewer than the smallest k.
    """
    if len(test_features) == 0 or len(train_features) < min(ks):
        raise ValueError(
            f'k-NN with k={min(ks)} or more needs at least that many training '
            f'features and one test feature, but there are '
            f'{len(train_features)} and {len(test_features)}')
    ks = sorted(k for k in set(ks) if k <= len(train_features))
    train_features = F.normalize(train_features.float(), dim=1)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    correct = dict.fromkeys(ks, 0)
    for start in range(0, len(test_features), chunk_size):
        chunk = slice(start, start + chunk_size)
        queries = F.normalize(test_features[chunk].float(), dim=1)
        similarity, index = (queries @ train_features.t()).topk(ks[-1], dim=1)
        # The largest weight is 1: no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        labels = train_labels[index]
        for k in ks:
            votes = weight.new_zeros(len(queries), num_classes)
            votes.scatter_add_(1, labels[:, :k], weight[:, :k])
            hit = votes.argmax(dim=1) == test_labels[chunk]
            correct[k] += int(hit.sum())
    return {k: 100 * n / len(test_features) for k, n in correct.items()}
