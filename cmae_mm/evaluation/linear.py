"""Linear classification of frozen features, many learning rates at once."""
import math
from typing import Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Learning rates for a batch of 256.
LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1., 3.)


def standardise(train: Tensor, test: Tensor) -> Tuple[Tensor, Tensor]:
    """Normalise features by the training features' mean and variance.

    This is what a BatchNorm without affine parameters computes.

    Args:
        train (Tensor): Training features, (M, D).
        test (Tensor): Test features, (N, D).

    Returns:
        Tuple[Tensor, Tensor]: Both, normalised.
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
                 seed: int = 0) -> Dict[float, Tensor]:
    """Train one linear classifier per learning rate, all side by side.

    SGD with momentum and a cosine schedule on standardised features; the
    classifiers see the same batches and do not influence each other.

    Args:
        train_features (Tensor): Training features, (M, D).
        train_labels (Tensor): Their classes, numbered from 0, (M, ).
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
        Dict[float, Tensor]: Predicted classes, (N, ), by learning rate.

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
    num_classes = int(train_labels.max()) + 1
    batch_size = min(batch_size, count)
    steps = epochs * math.ceil(count / batch_size)
    # One classifier per learning rate; at zero each class is as likely.
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
            loss = F.cross_entropy(
                logits.view(-1, num_classes),
                labels.repeat_interleave(len(lrs)),
                reduction='sum') / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {
        lr: torch.cat([
            F.linear(x, weight, bias).argmax(dim=1)
            for x in test_features.split(65536)
        ])
        for lr, weight, bias in zip(lrs, weights, biases)
    }
