"""Linear probes, low-shot and intervals, against torch and scikit-learn."""
import numpy as np
import pytest
import torch
from feature_sets import blobs
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmae_mm.evaluation.data import draw_fraction, draw_shots
from cmae_mm.evaluation.features import FeatureSet
from cmae_mm.evaluation.probes import (balanced_accuracy, bootstrap_interval,
                                       fit_logistic_regression, linear_sweep,
                                       low_shot, score)


@pytest.mark.parametrize('weight_decay', [0., 0.1])
def test_linear_sweep_is_plain_sgd(weight_decay):
    """Each classifier of the sweep is what torch's SGD trains alone."""
    train, test = blobs(), blobs(200, seed=1)
    lrs = (0.01, 0.1, 1.)
    swept = linear_sweep(
        *train, test.features, lrs, epochs=5, batch_size=64,
        weight_decay=weight_decay)
    mean = train.features.mean(dim=0)
    std = train.features.std(dim=0, correction=0)
    x, x_test = ((f - mean) / std for f in (train.features, test.features))
    for lr in lrs:
        model = torch.nn.Linear(16, 5)
        for p in model.parameters():
            torch.nn.init.zeros_(p)
        optimizer = torch.optim.SGD(
            [dict(params=[model.weight], weight_decay=weight_decay),
             dict(params=[model.bias])], lr * 64 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, 5 * 7)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            order = torch.randperm(400, generator=generator)
            for index in order.split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(
                    model(x[index]), train.labels[index]).backward()
                optimizer.step()
                schedule.step()
        alone = model(x_test).argmax(dim=1)
        assert (alone == swept[lr]).float().mean() > 0.99
    assert score(swept[0.1], test.labels).top1 > 40  # chance is 20


def test_logistic_regression_is_scikit_learns():
    train, test = blobs(60), blobs(200, seed=1)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1.))
    theirs.fit(train.features.numpy(), train.labels.numpy())
    expected = theirs.predict(test.features.numpy())
    ours = fit_logistic_regression(train, test)
    assert (ours.numpy() == expected).mean() > 0.99
    drawn = low_shot(train, test, shots=(1, 5), trials=3)
    assert {k: len(v) for k, v in drawn.items()} == {1: 3, 5: 3}
    one, five = (np.mean([score(found, test.labels).top1 for found in draws])
                 for draws in drawn.values())
    assert five > one


@pytest.mark.filterwarnings('error')
def test_one_label_per_class_is_no_warning():
    train = FeatureSet(torch.randn(30, 4), torch.arange(30))
    assert (fit_logistic_regression(train, train) == train.labels).any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_balanced_accuracy_is_scikit_learns(pairs):
    labels, predicted = torch.tensor(pairs).unbind(1)
    assert balanced_accuracy(predicted, labels) == pytest.approx(
        100 * balanced_accuracy_score(labels, predicted))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.floats(0.5, 100), st.integers(0, 9))
def test_shares_keep_the_balance(sizes, percent, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(labels)
    drawn = draw_fraction(labels, percent, seed)
    assert drawn == sorted(set(drawn))
    assert drawn == draw_fraction(labels, percent, seed)
    counts = np.bincount(labels[drawn], minlength=len(sizes))
    for size, count in zip(sizes, counts):
        assert count == max(1, round(size * percent / 100))


def test_shots():
    labels = [0, 0, 0, 1, 1, 1, 1]
    drawn = draw_shots(labels, 2, seed=0)
    assert np.bincount(np.array(labels)[drawn]).tolist() == [2, 2]
    assert any(draw_shots(labels, 2, s) != drawn for s in range(1, 5))
    with pytest.raises(ValueError, match='the smallest class has 3'):
        draw_shots(labels, 4, seed=0)


@pytest.mark.parametrize('count,share', [(50, 0.3), (2000, 0.9)])
def test_intervals_are_scipys(count, share):
    correct = np.arange(count) < share * count
    ours = bootstrap_interval(correct)
    theirs = bootstrap((correct.astype(float), ),
                       np.mean,
                       method='percentile',
                       n_resamples=5000,
                       random_state=1).confidence_interval
    # within the width of a few images and of the resampling's own noise
    tolerance = 2 * 100 / count + 0.2
    assert ours == pytest.approx([100 * x for x in theirs], abs=tolerance)
    assert ours[0] < 100 * share < ours[1]


def test_large_test_sets_have_no_interval():
    labels = torch.zeros(10_000, dtype=torch.long)
    assert score(labels, labels).interval is None
    assert score(labels[:9_999], labels[:9_999]).interval == (100., 100.)
