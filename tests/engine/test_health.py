"""Health values; measuring does not change the training."""
import json
import math

import numpy as np
import pytest
import torch
from helpers import build, model_cfg, runner_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from cmae_mm.engine import HealthHook, ResumableRunner
from cmae_mm.engine.hooks.health_hook import target_distance
from cmae_mm.evaluation.health import effective_rank, positive_ranks, spread

shapes = st.tuples(st.integers(2, 12), st.integers(2, 12),
                   st.integers(0, 2**31))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_the_effective_rank_is_rankme(shape):
    rows, columns, seed = shape
    features = np.random.default_rng(seed).normal(size=(rows, columns))
    singular = np.linalg.svd(features, compute_uv=False)
    share = singular / singular.sum() + 1e-7
    expected = math.exp(-sum(p * math.log(p) for p in share))
    rank = float(effective_rank(torch.from_numpy(features)))
    assert rank == pytest.approx(expected, rel=1e-5)
    assert 1 <= rank <= min(rows, columns) + 1e-3
    # neither the order of images nor their scale matters
    turned = torch.from_numpy(features[::-1].copy()) * 7
    assert float(effective_rank(turned)) == pytest.approx(rank, rel=1e-5)


def test_collapsed_features_have_rank_1_and_no_spread():
    one = torch.randn(1, 16).expand(20, 16)
    assert float(effective_rank(one)) == pytest.approx(1, abs=1e-3)
    assert float(spread(one)) == pytest.approx(0, abs=1e-9)
    apart = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert float(spread(apart)) == pytest.approx(1, abs=0.02)
    assert float(effective_rank(torch.eye(16))) == pytest.approx(16, abs=1e-3)


def test_images_that_are_not_finite_are_left_out():
    features = torch.randn(8, 4)
    spoilt = torch.cat([features, torch.full((2, 4), float('nan'))])
    for measure in (effective_rank, spread):
        assert float(measure(spoilt)) == float(measure(features))
        assert math.isnan(measure(spoilt[8:]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4))
def test_the_positives_rank_is_its_place_in_a_sorted_list(seed, first):
    rng = np.random.default_rng(seed)
    predictions = rng.normal(size=(5, 3)).astype(np.float32)
    targets = rng.normal(size=(9, 3)).astype(np.float32)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True)
            for v in (predictions, targets)]
    expected = []
    for i, row in enumerate(unit[0] @ unit[1].T):
        expected.append(1 + sorted(row, reverse=True).index(row[i + first]))
    ranks = positive_ranks(*map(torch.from_numpy, (predictions, targets)),
                           first)
    assert ranks.tolist() == expected


def rows(work_dir, key='health/erank_online'):
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [row for row in map(json.loads, path.read_text().splitlines())
            if key in row]


def train(image_root, work_dir, hooks, **overrides):
    cfg = runner_cfg(image_root, work_dir, **{
        'train_cfg.max_iters': 6, 'default_hooks.checkpoint.interval': 100,
        **overrides})
    cfg.custom_hooks = [h for h in cfg.custom_hooks
                        if h.type != 'HealthHook'] + hooks
    runner = ResumableRunner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('overrides', [
    {}, {'model': model_cfg(contrastive=False)},
    {'optim_wrapper.accumulative_counts': 3,
     'optim_wrapper.clip_grad': dict(max_norm=1e-3)},
], ids=['cmae', 'mae', 'accumulating'])
def test_measuring_changes_nothing(overrides, image_root, tmp_path):
    plain = train(image_root, tmp_path / 'a', [], **overrides)
    watched = train(image_root, tmp_path / 'b',
                    [dict(type='HealthHook', interval=2)], **overrides)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, watched.model.state_dict()[name]), name
    found = rows(tmp_path / 'b')
    accumulates = 'optim_wrapper.accumulative_counts' in overrides
    assert [row['step'] for row in found] == (
        [3, 6] if accumulates else [1, 2, 4, 6])
    contrasts = 'model' not in overrides
    for row in found:
        assert all(math.isfinite(v) for v in row.values()), row
        assert row['health/images_seen'] == 4 * row['iter']
        assert 1 <= row['health/erank_online'] <= 4
        assert 0 <= row['health/data_wait'] <= 100
        assert ('health/positive_rank' in row) == contrasts
        if contrasts:
            assert 1 <= row['health/positive_rank'] <= 4
            assert 'health/grad/head.contrastive' in row
        norms = [v for k, v in row.items() if 'grad/' in k]
        if accumulates:  # what the optimizer gets is clipped
            assert math.hypot(*norms) == pytest.approx(1e-3, rel=1e-2)
    # The log line has the rank, and nothing else of it.
    scalars = watched.message_hub.log_scalars
    assert [k for k in scalars if 'health' in k or 'rank' in k] == [
        'train/erank']
    expected = 'target' if contrasts else 'online'
    assert scalars['train/erank'].current() == found[-1][
        f'health/erank_{expected}']


def test_accuracy_and_rank_are_of_the_same_targets(image_root, tmp_path):
    """An image is counted as correct where its positive's rank is 1."""
    train(image_root, tmp_path, [dict(type='HealthHook', interval=1)],
          **{'log_processor.window_size': 1})
    logged = {r['step']: r for r in rows(tmp_path, 'acc_ct')}
    for row in rows(tmp_path):
        wrong = 1 - logged[row['step']]['acc_ct'] / 100
        rank = row['health/positive_rank']
        assert 1 + wrong - 1e-6 <= rank <= 1 + 3 * wrong + 1e-6


def test_each_warning_is_logged_once(image_root, tmp_path):
    """Batches of 4 images are such."""
    train(image_root, tmp_path, [dict(type='HealthHook', interval=1)],
          **{'train_cfg.max_iters': 8})
    (log, ) = tmp_path.glob('*/*.log')
    said = [line for line in log.read_text().splitlines()
            if 'Health: ' in line]
    assert len(said) == 1
    assert 'see only 4 images' in said[0]


def test_target_distance_covers_averaged_parameters():
    model = build(model_cfg())
    assert float(target_distance(model)) == 0
    with torch.no_grad():
        for part in (model.backbone, model.neck.projector):
            for parameter in part.parameters():
                parameter.mul_(2)  # fixed positions are not averaged
    assert float(target_distance(model)) == pytest.approx(0.5)


def test_health_hook_needs_a_cmae(tmp_path):
    with pytest.raises(ValueError, match='interval must be 1 or more'):
        HealthHook(interval=0)
    from tiny_training import tiny_runner
    with pytest.raises(ValueError, match='the model is a Linear'):
        tiny_runner(tmp_path, iters=1, hooks=[dict(type='HealthHook')]).train()
