"""Evaluation during training."""
import numpy as np
import pytest
import torch
from helpers import model_cfg, runner_cfg
from mmengine.runner import Runner


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
