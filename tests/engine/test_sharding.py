"""A model shared out over two ranks trains as one in one piece on each."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import model_cfg, runner_cfg
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer
from tiny_training import on_ranks

import cmae_mm
from cmae_mm.engine import ResumableFlexibleRunner, ResumableRunner
from cmae_mm.engine.device import adapt_to_device

sharding = pytest.importorskip('cmae_mm.engine.strategies')
pytestmark = pytest.mark.skipif(
    sharding.fully_shard is None, reason='torch is older than 2.6')
STEPS = 6


class Losses(Hook):
    """Keeps each step's losses and the norm of its gradients."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        hub = runner.message_hub
        self.seen.append([float(outputs[k]) for k in sorted(outputs)] + [
            float(hub.get_scalar('train/grad_norm').current())])


def train(image_root, work_dir, sharded, **overrides):
    """Train on this rank; give the losses and the runner."""
    Visualizer._instance_dict.clear()
    cfg = runner_cfg(
        image_root, work_dir, model_cfg(width=16, depth=2), **{
            # BatchNorm over few images makes much of rounding.
            'train_dataloader.batch_size': 8,
            'train_cfg.max_iters': STEPS,
            'default_hooks.checkpoint.interval': STEPS // 2,
            'default_hooks.checkpoint.max_keep_ckpts': 3,
            'optim_wrapper.clip_grad': dict(max_norm=0.5),
            'custom_hooks.1.end_momentum': 1.0,
            'resume': True, **overrides
        })
    cfg.launcher = 'pytorch'
    cfg.param_scheduler = [
        dict(type='CosineAnnealingLR', T_max=STEPS, end=STEPS, by_epoch=False)]
    if sharded:
        cfg.strategy = dict(type='FullyShardStrategy', sync_bn='torch')
    adapt_to_device(cfg)
    runner = (ResumableFlexibleRunner if sharded else ResumableRunner
              ).from_cfg(cfg)
    hook = Losses()
    runner.register_hook(hook)
    runner.train()
    return hook.seen, runner


@pytest.fixture(scope='module')
def runs(image_root, tmp_path_factory):
    """Both kinds of runs, and each going on from the middle of the other."""
    folder = tmp_path_factory.mktemp('sharding')

    def rank(number):
        seen = {}
        for name in ('plain', 'sharded'):
            seen[name], runner = train(
                image_root, folder / name, name == 'sharded')
            if name == 'sharded':
                parameters = list(runner.model.parameters())
                seen['rows'] = [
                    sum(p.to_local().numel() for p in parameters),
                    sum(p.numel() for p in parameters)]
        for name, other in (('plain', 'sharded'), ('sharded', 'plain')):
            work = folder / f'{name}_on'
            if number == 0:
                work.mkdir()
                shutil.copy(folder / other / 'iter_3.pth', work)
            torch.distributed.barrier()
            seen[f'{name}_on'], _ = train(
                image_root, work, name == 'sharded')
        seen['saving'], _ = train(
            image_root, folder / 'checkpointed', True,
            activation_checkpointing=True)
        (folder / f'{number}.json').write_text(json.dumps(seen))

    assert on_ranks(rank, folder) == [0, 0]
    seen = [json.loads((folder / f'{n}.json').read_text()) for n in range(2)]
    return folder, seen


def load(path):
    return torch.load(path, weights_only=False)


def test_losses_are_those_of_ddp(runs):
    _, seen = runs
    for rank in seen:
        plain, sharded = (torch.tensor(rank[k]) for k in ('plain', 'sharded'))
        assert plain.shape == (STEPS, 7)
        torch.testing.assert_close(sharded, plain, rtol=1e-4, atol=1e-5)
        # and where each layer is computed again in the backward pass
        torch.testing.assert_close(
            torch.tensor(rank['saving']), plain, rtol=1e-4, atol=1e-5)
        mine, all_of_them = rank['rows']
        assert mine < 0.65 * all_of_them
    assert seen[0]['rows'][0] + seen[1]['rows'][0] == seen[0]['rows'][1]


def test_checkpoints_are_those_of_a_model_in_one_piece(runs):
    """The target too: a moving average of parts is a part of the average."""
    folder, _ = runs
    plain, sharded = (load(folder / name / f'iter_{STEPS}.pth')
                      for name in ('plain', 'sharded'))
    assert plain.keys() == sharded.keys()
    assert plain['state_dict'].keys() == sharded['state_dict'].keys()
    for name, value in plain['state_dict'].items():
        other = sharded['state_dict'][name]
        assert type(other) is type(value)
        # Adam makes steps of gradients that are zero but for rounding.
        atol = 1e-5 if name.startswith('target.') else 2e-4
        torch.testing.assert_close(other, value, rtol=1e-4, atol=atol)
    states = [c['optimizer']['state'] for c in (plain, sharded)]
    assert states[0].keys() == states[1].keys()
    for number, values in states[0].items():
        for name, value in values.items():
            torch.testing.assert_close(
                states[1][number][name], value, rtol=1e-3, atol=1e-4)
    assert plain['param_schedulers'] == sharded['param_schedulers']
    for key in ('epoch', 'iter', 'seed', 'world_size', 'encoder_facts'):
        assert plain['meta'][key] == sharded['meta'][key]


@pytest.mark.parametrize('name, other', [('plain', 'sharded'),
                                         ('sharded', 'plain')])
def test_each_goes_on_with_the_others_checkpoint(runs, name, other):
    folder, seen = runs
    for rank in seen:
        torch.testing.assert_close(
            torch.tensor(rank[f'{name}_on']), torch.tensor(rank[other][3:]),
            rtol=1e-4, atol=1e-5)
    assert (folder / f'{name}_on' / f'iter_{STEPS}.pth').exists()


def test_the_unsharded_functions_read_it(runs):
    folder, _ = runs
    encoder = cmae_mm.load_encoder(folder / 'sharded' / f'iter_{STEPS}.pth')
    other = cmae_mm.load_encoder(folder / 'plain' / f'iter_{STEPS}.pth')
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), other(images),
                               rtol=1e-3, atol=1e-4)


def test_one_process_alone_is_refused(image_root, tmp_path):
    cfg = runner_cfg(image_root, tmp_path, model_cfg(width=16))
    cfg.strategy = dict(type='FullyShardStrategy')
    with pytest.raises(ValueError, match='start them by tools/dist_train.sh'):
        ResumableFlexibleRunner.from_cfg(cfg)
    assert Path(tmp_path).exists()
