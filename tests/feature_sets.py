"""Features that several tests of evaluation draw."""
import numpy as np
import torch

from cmae_mm.evaluation.features import FeatureSet


def blobs(count=400, classes=5, dims=16, noise=2., seed=0):
    """Features and labels of overlapping classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + noise * rng.normal(size=(count, dims))
    return FeatureSet(
        torch.from_numpy(features).float(), torch.from_numpy(labels))
