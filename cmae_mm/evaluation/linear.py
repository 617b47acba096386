"""Linear classification of frozen features, many learning rates at once."""
import math
from typing import Dict, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# For a batch of 256.
LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1., 3.)


def standardise(train: Tensor, test: Tensor) -> Sequence[Tensor]:
    """Normalise features by the training features' mean and variance.

    What a BatchNorm without affine parameters comes to, exactly.
    """
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    std = std.clamp_min(1e-6)
    return (train - mean) / std, (test - mean) / std


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
        train_features (Tensor): (M, D).
        train_labels (Tensor): Classes from 0, (M, ).
        test_features (Tensor): (N, D).
        lrs (Sequence[float]): Learning rates for a batch of 256; they are
            scaled to ``batch_size``. Defaults to ten from 1e-4 to 3.
        epochs (int): Defaults to 100.
        batch_size (int): Defaults to 1024.
        momentum (float): Defaults to 0.9.
        weight_decay (float): Defaults to 0.
        seed (int): Of the order of images. Defaults to 0.

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
    base = torch.tensor(lrs, device=device) * batch_size / 256
    # (R, D, C): R classifiers; at zero each class is as likely.
    weight = torch.zeros(len(lrs), dims, num_classes, device=device)
    bias = torch.zeros(len(lrs), 1, num_classes, device=device)
    velocity = [torch.zeros_like(p) for p in (weight, bias)]
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).to(device)
        for index in order.split(batch_size):
            x = train_features[index]
            target = F.one_hot(train_labels[index], num_classes)
            # The cross-entropy's gradient, for all classifiers.
            error = ((x @ weight + bias).softmax(dim=-1) - target) / len(x)
            gradients = (x.t() @ error + weight_decay * weight,
                         error.sum(dim=1, keepdim=True))
            lr = base * 0.5 * (1 + math.cos(math.pi * step / steps))
            for p, v, g in zip((weight, bias), velocity, gradients):
                v.mul_(momentum).add_(g)
                p.sub_(lr[:, None, None] * v)
            step += 1
    return {
        lr: torch.cat([(x @ w + b).argmax(dim=1)
                       for x in test_features.split(65536)])
        for lr, w, b in zip(lrs, weight, bias)
    }
