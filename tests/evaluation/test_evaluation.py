import json
import re
import sys

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    build,
    free_port,
    model_cfg,
    run_commands,
    run_tool,
    runner_cfg,
    write_images,
)
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmae_mm.evaluation import (
    FeatureSet,
    bootstrap_interval,
    build_eval_dataset,
    draw_share,
    draw_shots,
    eval_preprocessor,
    extract_features,
    fit_logistic_regression,
    knn_accuracy,
    knn_predict,
    linear_sweep,
    low_shot,
    score,
    with_pipeline,
)
from cmae_mm.evaluation.splits import read_split, write_split


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
    dataset = build_eval_dataset(
        with_pipeline(
            dict(
                type='LabelledDataset',
                data_root=str(image_root),
                data_prefix='train'), 32))
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


def blobs(count=400, classes=5, dims=16, noise=2., seed=0):
    """Features and labels of overlapping classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + noise * rng.normal(size=(count, dims))
    return FeatureSet(
        torch.from_numpy(features).float(), torch.from_numpy(labels))


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
    from cmae_mm.evaluation import knn
    train, test = blobs(500), blobs(20, seed=1)
    queries = torch.nn.functional.normalize(test.features, dim=1)
    for size in (7, 100, 1000):
        similarity, labels = knn._nearest(queries, *train, 50, size)
        all_of_them = queries @ torch.nn.functional.normalize(
            train.features, dim=1).t()
        expected, index = all_of_them.topk(50, dim=1)
        torch.testing.assert_close(similarity, expected)
        assert (labels == train.labels[index]).all()


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
    accuracies = low_shot(train, test, shots=(1, 5), trials=3)
    assert {k: len(v) for k, v in accuracies.items()} == {1: 3, 5: 3}
    assert np.mean(accuracies[5]) > np.mean(accuracies[1])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.floats(0.5, 100), st.integers(0, 9))
def test_shares_keep_the_balance(sizes, percent, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(labels)
    drawn = draw_share(labels, percent, seed)
    assert drawn == sorted(set(drawn))
    assert drawn == draw_share(labels, percent, seed)
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


def test_split_files(image_root, tmp_path):
    dataset = build_eval_dataset(
        dict(
            type='LabelledDataset', data_root=str(image_root),
            data_prefix='train', pipeline=[]))
    path = str(tmp_path / 'split.txt')
    assert write_split(dataset, 25, 0, path) == 6
    paths = [dataset.get_data_info(i)['img_path'] for i in range(24)]
    index = read_split(path, paths)
    few = DATASETS.build(
        dict(
            type='LabelledDataset', data_root=str(image_root),
            data_prefix='train', ann_file=path, pipeline=[]))
    for i, place in enumerate(index):
        assert few.get_data_info(i)['img_path'] == paths[place]
        assert few.get_data_info(i)['gt_label'] == int(place >= 12)
    for text, message in (('', 'is empty'),
                          ('class0/none.jpg 0\n', '1 images .* not in the')):
        (tmp_path / 'bad.txt').write_text(text)
        with pytest.raises(ValueError, match=message):
            read_split(str(tmp_path / 'bad.txt'), paths)


@pytest.fixture(scope='module')
def pretraining(image_root, tmp_path_factory):
    """A config file and a checkpoint of two training steps."""
    folder = tmp_path_factory.mktemp('pretraining')
    cfg = runner_cfg(image_root, folder / 'work')
    runner = Runner.from_cfg(cfg)
    runner.train()
    (folder / 'config.py').write_text(cfg.pretty_text)
    return folder / 'config.py', folder / 'work/iter_2.pth'


def last_json(output: str) -> dict:
    lines = [s for s in output.splitlines() if s.startswith('{"checkpoint')]
    return json.loads(lines[-1])


def test_the_commands(pretraining, image_root, tmp_path):
    config, checkpoint = pretraining
    common = ['--json', '--num-workers', 0, '--work-dir', tmp_path / 'work']
    out = run_tool('cmae', 'knn', config, checkpoint, *common,
                   '--encoder', 'target', '--dtype', 'float16')
    result = last_json(out)
    assert {'top1', 'best_k', '5', '10', '20'} <= result.keys()
    assert result['top1'] == max(result[k] for k in ('5', '10', '20'))
    low, high = result['interval']  # 8 images
    assert 0 <= low <= result['top1'] <= high <= 100

    out = run_tool('cmae', 'linear', config, 'random', *common,
                   '--epochs', 5, '--lrs', 0.1, 1)
    assert last_json(out)['top1'] == max(last_json(out)[k]
                                         for k in ('0.1', '1'))

    run_tool('cmae', 'splits', image_root, '--percent', 50, '--out',
             tmp_path)
    out = run_tool('cmae', 'low-shot', config, checkpoint, *common,
                   '--trials', 2, '--shots', 1, 5,
                   '--splits', tmp_path / '50pct_seed0.txt')
    assert {'1', '1_std', '5', '50pct_seed0'} <= last_json(out).keys()


def test_distributed_features_are_the_same(pretraining, tmp_path):
    config, checkpoint = pretraining
    args = ['knn', config, checkpoint, '--json', '--num-workers', 0,
            '--work-dir', tmp_path]
    alone = last_json(run_tool('cmae', *args))
    ranks = last_json(
        run_tool(sys.executable, '-m', 'torch.distributed.run',
                 '--nproc_per_node=2', f'--master_port={free_port()}',
                 '-m', 'cmae_mm', *args, '--launcher', 'pytorch'))
    assert ranks == alone


def _remove_val(root):
    for f in sorted((root / 'val').rglob('*'), reverse=True):
        f.unlink() if f.is_file() else f.rmdir()
    (root / 'val').rmdir()


def _other_class(root):
    write_images(root / 'val/other', 1)


# What is changed in the data, overrides, and what the sentence says.
BAD_INPUT = [
    (_remove_val, [], 'has no folder val or test'),
    (_other_class, [],
     "'other' in the validation data and not in the training data"),
    (None, ['model.backbone.patch_size=8'], 'patch_embed'),
    (None, ['model.backbone.arch.embed_dims=64'], 'misshapen'),
    (None, ['evaluation.valid=1'], "got .*'valid'"),
    (None, ['model.type=MAE'], 'must be one of pre-training'),
]


def test_bad_input_is_one_sentence(pretraining, tmp_path):
    config, checkpoint = pretraining
    commands = []
    for number, (change, options, _) in enumerate(BAD_INPUT):
        root = tmp_path / str(number)
        for split in ('train', 'val'):
            for c in range(2):
                write_images(root / split / f'class{c}', 6)
        if change is not None:
            change(root)
        commands.append(
            ['knn', config, checkpoint, '--work-dir', tmp_path / 'work',
             '--cfg-options',
             f'train_dataloader.dataset.data_root={root}', *options])
    results = run_commands(*commands)
    for (_, _, message), (status, output) in zip(BAD_INPUT, results):
        assert status == 1
        assert 'Traceback' not in output, output
        assert re.search(message, output[output.index('cmae knn: '):]), output


def trajectory(image_root, work_dir, hooks, **overrides):
    """Train a few steps; give the weights and the log's scalars."""
    overrides = {
        'train_dataloader.dataset.with_label': True,
        'train_cfg.max_iters': 6,
        **overrides
    }
    cfg = runner_cfg(image_root, work_dir, **overrides)
    cfg.custom_hooks += hooks
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.model.state_dict(), runner.message_hub.log_scalars


@pytest.mark.parametrize('contrastive', [True, False])
def test_probes_do_not_touch_the_encoder(contrastive, image_root, tmp_path):
    """The same trajectory, bit by bit, with and without."""
    overrides = dict(model=model_cfg(contrastive=contrastive))
    if not contrastive:
        overrides['custom_hooks'] = []
    plain, _ = trajectory(image_root, tmp_path / 'a', [], **overrides)
    watched, scalars = trajectory(
        image_root, tmp_path / 'b', [
            dict(type='OnlineProbeHook', num_classes=2),
            dict(type='KNNHook', interval=2, by_epoch=False, ks=(5, ),
                 num_workers=0)
        ], **overrides)
    assert plain.keys() == watched.keys()
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name
    probe = scalars['train/probe_top1'].data[0]
    assert len(probe) == 6 and all(0 <= x <= 100 for x in probe)
    assert len(scalars['knn/top1_k5'].data[0]) == 3


def test_the_online_probe_learns_and_is_resumed(tmp_path):
    """Two classes of different brightness are told apart."""
    for c, shade in enumerate((40, 200)):
        for i in range(16):
            folder = tmp_path / f'data/train/class{c}'
            folder.mkdir(parents=True, exist_ok=True)
            from PIL import Image
            Image.new('RGB', (48, 48), (shade + i, ) * 3).save(
                folder / f'{i}.jpg')
    hooks = [dict(type='OnlineProbeHook', num_classes=2, lr=1.)]
    options = {
        'train_dataloader.batch_size': 16,
        'default_hooks.checkpoint.interval': 10,
    }
    _, scalars = trajectory(tmp_path / 'data', tmp_path / 'work', hooks,
                            **{**options, 'train_cfg.max_iters': 30})
    accuracies = scalars['train/probe_top1'].data[0]
    assert np.mean(accuracies[-5:]) > 90
    assert scalars['train/probe_loss'].data[0][0] == pytest.approx(
        np.log(2), abs=1e-5)
    _, scalars = trajectory(
        tmp_path / 'data', tmp_path / 'work', hooks, resume=True,
        **{**options, 'train_cfg.max_iters': 32})
    assert scalars['train/probe_loss'].data[0][-2] < 0.5


def test_the_online_probe_needs_labels(image_root, tmp_path):
    for hook, overrides, message in (
        (dict(num_classes=2), {'train_dataloader.dataset.with_label': False},
         'with_label=True'),
        (dict(num_classes=1), {}, '2 or more'),
    ):
        with pytest.raises(ValueError, match=message):
            trajectory(image_root, tmp_path,
                       [dict(type='OnlineProbeHook', **hook)], **overrides)


def test_cifar10_as_class_folders(tmp_path, monkeypatch):
    """The download's format, but for the download itself."""
    import pickle

    from mmpretrain.datasets import CIFAR10
    monkeypatch.syspath_prepend(str(ROOT / 'tools/datasets'))
    import make_cifar10
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    batch = tmp_path / 'download/cifar-10-batches-py/test_batch'
    batch.parent.mkdir(parents=True)
    batch.write_bytes(
        pickle.dumps(dict(data=data.reshape(4, -1), labels=[3, 0, 3, 9])))
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    dataset = CIFAR10(
        data_root=str(tmp_path / 'download'), split='test', pipeline=[])
    for _ in range(2):  # the second time nothing is written
        assert make_cifar10.write_images(dataset, tmp_path / 'test') == 4
    written = build_eval_dataset(
        dict(type='LabelledDataset', data_root=str(tmp_path),
             data_prefix='test', pipeline=[dict(type='LoadImageFromFile')]))
    assert written.metainfo['classes'] == tuple(sorted(CIFAR10.METAINFO[
        'classes']))
    assert [written[i]['gt_label'] for i in range(4)] == [0, 3, 3, 9]
    for i, place in enumerate((1, 0, 2, 3)):
        rgb = written[i]['img'][..., ::-1]
        assert (rgb == data[place].transpose(1, 2, 0)).all()
