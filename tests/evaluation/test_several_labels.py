"""k-NN and linear classification of images of several labels."""
import numpy as np
import pytest
import torch
from helpers import build, model_cfg, write_images
from sklearn.metrics import average_precision_score

import cmae_mm
from cmae_mm.checkpoints import export_encoder
from cmae_mm.evaluation.data import EvaluationDataError, open_labelled
from cmae_mm.evaluation.probes import knn_predict, linear_sweep, mean_precision


def make_features(count, seed):
    """Features whose signs are three labels, and noise."""
    features = torch.randn(
        count, 8, generator=torch.Generator().manual_seed(seed))
    return features, features[:, :3] > 0


def test_votes_are_those_of_a_plain_loop():
    train, labels = make_features(40, 0)
    test, truth = make_features(7, 1)
    found = knn_predict(train, labels, test, (5, ), 0.1, chunk_size=3)[5]
    for row, query in zip(found, test):
        cosines = torch.cosine_similarity(query[None], train)
        nearest = cosines.argsort(descending=True)[:5]
        weights = (cosines[nearest] / 0.1).exp()
        wanted = (weights[:, None] * labels[nearest]).sum(0) / weights.sum()
        assert torch.allclose(row, wanted, atol=1e-5)
    assert mean_precision(found, truth) == pytest.approx(
        100 * average_precision_score(truth.numpy(), found.numpy()))


def test_linear_learns_each_label():
    found = linear_sweep(*make_features(400, 0), make_features(200, 1)[0],
                         lrs=(1e-4, 0.3), epochs=30)
    truth = make_features(200, 1)[1]
    assert found[0.3].shape == (200, 3)
    assert mean_precision(found[0.3], truth) > 97
    # Together as alone.
    alone = linear_sweep(*make_features(400, 0), make_features(200, 1)[0],
                         lrs=(0.3, ), epochs=30)
    assert torch.allclose(alone[0.3], found[0.3], atol=1e-4)


def test_lists(tmp_path):
    write_images(tmp_path / 'images', 12)
    files = sorted((tmp_path / 'images').iterdir())
    rows = [f'{f},{("a|b", "b", "a", "")[i % 4]},{"train" if i < 8 else "val"}'
            for i, f in enumerate(files)]
    (tmp_path / 'list.csv').write_text(
        '\n'.join(['path,label,split', *rows]))
    (tmp_path / 'columns.csv').write_text('\n'.join([
        'path,a,b,split', *(
            f'{f},{int("a" in t)},{int("b" in t)},{s}'
            for f, t, s in (row.split(',') for row in rows))]))
    for name in ('list.csv', 'columns.csv'):
        images = open_labelled(tmp_path / name)
        assert images.train.classes == images.val.classes == ['a', 'b']
        assert np.asarray(images.val.labels).tolist() == [
            [True, True], [False, True], [True, False], [False, False]]
    export_encoder(build(model_cfg()), str(tmp_path / 'e.safetensors'))
    options = dict(num_workers=0, work_dir=tmp_path)
    for function, more in ((cmae_mm.knn, dict(ks=(3, ))),
                           (cmae_mm.linear, dict(lrs=(0.1, ), epochs=2))):
        found = function(tmp_path / 'list.csv', tmp_path / 'e.safetensors',
                         **more, **options)
        assert 0 < found['mAP'] <= 100 and 'top1' not in found
    with pytest.raises(EvaluationDataError, match='several labels'):
        cmae_mm.low_shot(tmp_path / 'list.csv', tmp_path / 'e.safetensors',
                         **options)
    # One label to an image, and none to some: these are skipped.
    (tmp_path / 'list.csv').write_text('\n'.join(
        ['path,label,split', *rows]).replace('a|b', 'a'))
    images = open_labelled(tmp_path / 'list.csv')
    assert images.val.labels.tolist() == [0, 1, 0]
    assert 'skipped: 2 rows without a label' in images.train.describe()
