"""Figures that tell a healthy pre-training from a broken one."""
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    r"""Compute the effective rank of features, RankMe (arXiv 2210.02885).

    .. math::
        \exp\Big(-\sum_k p_k \log p_k\Big), \quad
        p_k = \frac{\sigma_k}{\sum_i \sigma_i} + 10^{-7}

    with the singular values :math:`\sigma_k` of the matrix of features, which
    is not centred.

    Args:
        features (Tensor): Features of N images, (N, D), of any float type.
            Images whose features are not finite are left out.

    Returns:
        Tensor: A float64 scalar, from 1 (all features are multiples of one)
        to min(N, D); nan if no features are left.
    """
    features = features.double()
    features = features[features.isfinite().all(dim=1)]
    if not len(features):
        return features.new_tensor(float('nan'))
    if features.shape[0] > features.shape[1]:
        features = features.t()
    # Squared singular values, from the smaller of the two Gram matrices.
    squared = torch.linalg.eigvalsh(features @ features.t())
    singular = squared.clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-30) + 1e-7
    return (-(share * share.log()).sum()).exp()


@torch.no_grad()
def spread(features: Tensor) -> Tensor:
    r"""Compute how far the directions of features are spread.

    The standard deviation over the images of each coordinate of
    :math:`z / \lVert z \rVert`, averaged over the coordinates and multiplied
    by :math:`\sqrt D` (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        features (Tensor): Features of N images, (N, D), of any float type.
            Images whose features are not finite are left out.

    Returns:
        Tensor: A float64 scalar: 0 if all features have one direction, about
        1 if they are spread over all directions; nan for fewer than 2 images.
    """
    features = features.double()
    features = features[features.isfinite().all(dim=1)]
    if len(features) < 2:
        return features.new_tensor(float('nan'))
    directions = F.normalize(features, dim=1)
    return directions.std(dim=0).mean() * features.shape[1]**0.5


@torch.no_grad()
def positive_ranks(predictions: Tensor, targets: Tensor,
                   first: int = 0) -> Tensor:
    """Give the place of each image's own target among all targets.

    Targets are in the order of their cosine to the prediction.

    Args:
        predictions (Tensor): Predictions y_s^p of N images, (N, E).
        targets (Tensor): Target projections z_t^p, (M, E), M >= N.
        first (int): Which of the targets is the first prediction's own.
            Defaults to 0.

    Returns:
        Tensor: Whole numbers from 1 (its own target is the nearest) to M,
        (N, ).
    """
    rho = F.normalize(predictions.float(), dim=1) @ F.normalize(
        targets.float(), dim=1).t()
    index = torch.arange(len(rho), device=rho.device)[:, None] + first
    return (rho > rho.gather(1, index)).sum(dim=1) + 1
