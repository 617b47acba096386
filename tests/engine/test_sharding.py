"""Sharded training matches unsharded training.

The ranks are real processes that talk through gloo on CPUs.
"""
import copy
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import model_cfg, needs_torch, run_commands, runner_cfg
from mmengine.registry import RUNNERS
from tiny_training import AtIteration, content, log, names, on_ranks

import cmae_mm
from cmae_mm.engine import ShardedRunner
from cmae_mm.engine.device import adapt_to_device

pytestmark = needs_torch(2, 6, 'fully_shard')

STEPS = 4
SHARDED = dict(runner_type='mmpretrain.ShardedRunner',
               strategy=dict(type='FullyShardStrategy'))
HOOKS = [
    dict(type='OnlineProbeHook', num_classes=2),
    dict(type='KNNHook', interval=2, by_epoch=False, ks=(5, ), num_workers=0),
    dict(type='ReconstructionHook', interval=2, by_epoch=False, num_images=2),
]
SETTINGS = dict(
    micro={'model.micro_batch': 2},
    recompute=dict(activation_checkpointing=True),
    gathered={'strategy.reshard_after_forward': False},
    weights={'load_from': 'whole/iter_2.pth',
             'optim_wrapper.optimizer.lr': 0.})


def config(root, work, sharded=True, hooks=(), model=None, **overrides):
    cfg = runner_cfg(
        root, work, model or model_cfg(width=16), **{
            'train_dataloader.dataset.with_label': True,
            'train_cfg.max_iters': STEPS,
            'default_hooks.checkpoint.interval': 2,
            'default_hooks.checkpoint.max_keep_ckpts': 9,
            'optim_wrapper.clip_grad': dict(max_norm=1.),
            # Adam makes steps of gradients that are nothing but rounding.
            'optim_wrapper.optimizer.eps': 1e-3,
            'resume': True, 'launcher': 'pytorch',
            **copy.deepcopy(SHARDED if sharded else {}), **overrides})
    cfg.custom_hooks = [h for h in cfg.custom_hooks
                        if h.type != 'ReconstructionHook'] + list(hooks)
    adapt_to_device(cfg)
    return cfg


def train(cfg, hook=None):
    runner = RUNNERS.build(cfg)
    if hook is not None:
        runner.register_hook(hook)
    runner.train()
    return runner


def scalars(work):
    """All logged values of a run by iteration."""
    rows = {}
    for path in Path(work).glob('*/vis_data/scalars.json'):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows.setdefault(row.get('iter', row.get('step')), {}).update(row)
    return rows


def assert_close(first, second, **limits):
    """Compare nested values, tensors and numbers within rounding."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_close(first[key], second[key], **limits)
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second):
            assert_close(a, b, **limits)
    elif isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, **limits)
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=1e-5)
    else:
        assert first == second


@pytest.fixture(scope='module')
def folder(image_root, tmp_path_factory):
    """All runs, in one pair of processes after the other."""
    folder = tmp_path_factory.mktemp('sharding')

    def rank(number):
        train(config(image_root, folder / 'whole', False, HOOKS))
        runner = train(config(image_root, folder / 'shared', hooks=HOOKS))
        held = {n: p.to_local().numel()
                for n, p in runner.model.named_parameters()}
        (folder / f'held_{number}.json').write_text(json.dumps(held))
        for name, work in (('whole', 'from_shared'), ('shared', 'from_whole')):
            source = folder / work.split('_')[1] / 'iter_2.pth'
            train(config(image_root, folder / work, name == 'shared',
                         HOOKS, resume_from=str(source)))
        for work, setting in SETTINGS.items():
            if 'load_from' in setting:
                setting['load_from'] = str(folder / setting['load_from'])
            hooks = HOOKS if work == 'gathered' else ()
            train(config(
                image_root, folder / work, hooks=hooks, resume=False, **{
                    'train_cfg.max_iters': 2, **setting}))

    assert on_ranks(rank, folder) == [0, 0]
    return folder


def test_ranks_that_share_train_as_ranks_that_do_not(folder):
    whole, shared = (content(folder / f'{kind}/iter_{STEPS}.pth')
                     for kind in ('whole', 'shared'))
    logged = [scalars(folder / kind) for kind in ('whole', 'shared')]
    assert logged[0].keys() == logged[1].keys() == set(range(1, STEPS + 1))
    figures = set()
    for step, row in logged[0].items():
        same = {k: v for k, v in row.items() if k.startswith(
            ('loss', 'rho', 'grad_norm', 'lr', 'health/grad', 'health/erank',
             'health/target', 'knn', 'probe'))}
        figures |= set(same)
        for name, value in same.items():
            assert logged[1][step][name] == pytest.approx(
                value, rel=1e-4, abs=1e-6), (step, name)
    assert {'loss_rc', 'loss_ct', 'health/target_distance', 'grad_norm',
            'health/grad/backbone', 'knn/top1_k5', 'probe_loss'} <= figures
    # Parameters, target, statistics; moments of the optimizer; schedules.
    assert shared.keys() == whole.keys()
    target = {n for n in whole['state_dict'] if n.startswith('target.')}
    assert len(target) > 20
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_close(shared[key], whole[key], rtol=1e-3, atol=1e-5)
    assert shared['meta'].keys() >= whole['meta'].keys()
    assert len(list((folder / 'shared').rglob('reconstruction_*.png'))) == 2


def test_each_rank_holds_its_share(folder):
    """And that of the target has the rows of the online one's."""
    held = [json.loads((folder / f'held_{n}.json').read_text())
            for n in (0, 1)]
    state = content(folder / f'shared/iter_{STEPS}.pth')['state_dict']
    assert held[0].keys() == held[1].keys()
    for name, count in held[0].items():
        assert count + held[1][name] == state[name].numel(), name
        if name.startswith('target.encoder.'):
            online = name.replace('target.encoder.', 'backbone.')
            assert count == held[0][online], name
    assert sum(held[0].values()) < 0.6 * sum(
        state[n].numel() for n in held[0])


@pytest.mark.parametrize('kind', ['from_whole', 'from_shared'])
def test_sharded_and_unsharded_runs_resume_from_each_other(folder, kind):
    expected = content(folder / f'whole/iter_{STEPS}.pth')
    made = content(folder / f'{kind}/iter_{STEPS}.pth')
    for key in ('state_dict', 'optimizer'):
        assert_close(made[key], expected[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('setting', ['micro', 'recompute', 'gathered'])
def test_settings_of_memory_work_with_sharding(folder, setting):
    logged = [scalars(folder / kind) for kind in ('whole', setting)]
    for step in (1, 2):
        for name in ('loss_rc', 'loss_ct', 'grad_norm', 'health/erank_online'):
            assert logged[1][step][name] == pytest.approx(
                logged[0][step][name], rel=1e-4), (step, name)


def test_a_new_run_starts_from_weights(folder):
    assert f'Loaded {folder}/whole/iter_2.pth' in log(folder / 'weights')
    given, made = (content(folder / f'{kind}/iter_2.pth')['state_dict']
                   for kind in ('whole', 'weights'))
    for name, value in given.items():
        if name.startswith('backbone.'):  # its learning rate was 0
            assert torch.equal(made[name], value), name


def test_stopped_run_resumes_exactly(folder, image_root):
    """SIGTERM to one rank; both agree, and save together, a step later."""
    work = folder / 'stopped'
    act = AtIteration(2, lambda runner: runner.rank == 1 and os.kill(
        os.getpid(), signal.SIGTERM))
    assert on_ranks(
        lambda rank: train(config(image_root, work, hooks=HOOKS), act),
        folder) == [75, 75]
    assert names(work) == ['iter_2.pth', 'iter_3.pth']
    assert on_ranks(
        lambda rank: train(config(image_root, work, hooks=HOOKS)),
        folder) == [0, 0]
    whole, made = (content(folder / f'{kind}/iter_{STEPS}.pth')
                   for kind in ('shared', 'stopped'))
    for name, value in whole['state_dict'].items():
        assert torch.equal(made['state_dict'][name], value), name


def test_single_process_commands_read_the_checkpoint(folder, image_root):
    checkpoint = folder / f'shared/iter_{STEPS}.pth'
    cfg = config(image_root, folder / 'plain', launcher='none')
    cfg.dump(folder / 'config.py')
    results = run_commands(
        ['knn', image_root, checkpoint, '--work-dir',
         folder / 'knn'],
        ['export', folder / 'config.py', checkpoint, folder / 'hf', '--to',
         'hf'],
        ['train', folder / 'config.py'])
    assert [status for status, _ in results] == [0, 0, 1], results
    assert 'tools/dist_train.sh' in results[2][1].splitlines()[-1]
    images = torch.rand(2, 3, 32, 32)
    tokens = []
    for kind in ('whole', 'shared'):
        encoder = cmae_mm.load_encoder(folder / f'{kind}/iter_{STEPS}.pth')
        tokens.append(encoder(images))
    torch.testing.assert_close(*tokens, rtol=1e-3, atol=1e-4)


def test_models_that_cannot_be_sharded_raise(image_root, tmp_path):
    def rank(number):
        for named, change in (
                ('FSDPStrategy', dict(strategy=dict(type='FSDPStrategy'))),
                ('does not support compile', dict(compile=True)),
                ('model_wrapper', {'strategy.model_wrapper': dict(a=1)})):
            with pytest.raises(ValueError, match=named):
                ShardedRunner.from_cfg(config(image_root, tmp_path, **change))
        cfg = config(image_root, tmp_path)
        other = copy.deepcopy(cfg)
        other.model.backbone.arch.num_layers = 1
        torch.save(dict(state_dict=cmae_mm.engine.ResumableRunner.from_cfg(
            other).model.state_dict()), tmp_path / f'other{number}.pth')
        cfg.load_from = str(tmp_path / f'other{number}.pth')
        with pytest.raises(cmae_mm.checkpoints.CheckpointError,
                           match='1 layers deep.*2 layers deep'):
            train(cfg)

    assert on_ranks(rank, tmp_path) == [0, 0]
