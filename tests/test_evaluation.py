import numpy as np
import pytest
import torch
from conftest import build, model_cfg
from mmengine.config import ConfigDict
from mmpretrain.registry import MODELS
from sklearn.neighbors import KNeighborsClassifier

from cmae_mm.evaluation import (
    build_eval_dataset,
    eval_preprocessor,
    extract_features,
    knn_accuracy,
)


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
    with pytest.raises(ValueError, match='k=5 .* there are 3 and 3'):
        knn_accuracy(x, y, x, y)


def test_features_of_image_files(image_root):
    model = build(model_cfg())
    dataset = build_eval_dataset(str(image_root), 'train', 32)
    cfg = ConfigDict(
        model=dict(),
        data_preprocessor=dict(
            mean=[120.] * 3, std=[60.] * 3, to_rgb=True, type='Other'))
    preprocessor = MODELS.build(eval_preprocessor(cfg))
    features, labels = extract_features(
        model, preprocessor, dataset, batch_size=5, num_workers=0)
    assert features.shape == (24, 48) and model.training
    assert labels.tolist() == [0] * 12 + [1] * 12
    # a single image, by hand
    sample = dataset[17]['inputs'].float().flip(0)[None]
    expected = model.eval().extract_feat((sample - 120) / 60)
    torch.testing.assert_close(features[17:18], expected)
