"""k-NN classification, compared with scikit-learn."""
import numpy as np
import pytest
import torch
from feature_sets import blobs
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from cmae_mm.evaluation.features import FeatureSet
from cmae_mm.evaluation.probes import knn_accuracy, knn_predict


@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_knn_equals_scikit_learn(temperature):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(0, 5, 400)
    features = centres[labels] + 2 * rng.normal(size=(400, 16))
    split = (slice(0, 300), slice(300, 400))
    ks = (1, 5, 20, 50)
    ours = knn_accuracy(
        *(torch.from_numpy(a[split[0]]) for a in (features, labels)),
        *(torch.from_numpy(a[split[1]]) for a in (features, labels)),
        ks=ks,
        temperature=temperature,
        chunk_size=33)
    for k in ks:
        theirs = KNeighborsClassifier(
            k,
            metric='cosine',
            algorithm='brute',
            weights=lambda d: np.exp((1 - d) / temperature))
        theirs.fit(features[split[0]], labels[split[0]])
        accuracy = 100 * theirs.score(features[split[1]], labels[split[1]])
        assert ours[k] == pytest.approx(accuracy)
        assert 20 < accuracy < 100  # the task is neither trivial nor void


def test_knn_without_enough_features():
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match='k=5 .* there are 3'):
        knn_accuracy(x, y, x, y)


@given(st.integers(1, 500), st.sampled_from([torch.float32, torch.float16]))
def test_chunks_do_not_change_neighbours(chunk_size, dtype):
    train, test = blobs(130), blobs(70, seed=1)
    train = FeatureSet(train.features.to(dtype), train.labels)
    whole = knn_predict(*train, test.features, ks=(5, 50))
    # 64 times as many training features are looked at at once
    parts = knn_predict(
        *train, test.features, ks=(5, 50), chunk_size=chunk_size)
    for k in whole:
        assert (whole[k] == parts[k]).float().mean() > 0.98  # but for ties


def test_training_features_come_in_chunks_too(monkeypatch):
    from cmae_mm.evaluation import probes
    train, test = blobs(500), blobs(20, seed=1)
    queries = torch.nn.functional.normalize(test.features, dim=1)
    for size in (7, 100, 1000):
        similarity, labels = probes._nearest(queries, *train, 50, size)
        all_of_them = queries @ torch.nn.functional.normalize(
            train.features, dim=1).t()
        expected, index = all_of_them.topk(50, dim=1)
        torch.testing.assert_close(similarity, expected)
        assert (labels == train.labels[index]).all()
