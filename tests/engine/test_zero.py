"""Two ranks that share an optimizer out train as two that do not.

The ranks are real processes that talk through gloo on CPUs.
"""
import importlib.util
import json

import pytest
import torch
from run_commands import run_one
from test_sharding import STEPS, assert_close, scalars, train
from test_sharding import config as constant_rate_config
from tiny_training import (
    AtIteration,
    content,
    end_fork,
    log,
    on_ranks,
    start_fork,
)

import cmae_mm
from cmae_mm.dependencies import MissingLibrary
from cmae_mm.engine import ShardedRunner, ZeroStrategy

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec('deepspeed') is None,
    reason="DeepSpeed is not installed (extra 'deepspeed')")
MOMENTS = ('exp_avg', 'exp_avg_sq')


def config(*args, **overrides):
    """Give a config whose learning rate is another in each step."""
    return constant_rate_config(*args, **{
        'param_scheduler': [dict(
            type='LinearLR', start_factor=0.1, by_epoch=False, end=STEPS)],
        **overrides})


def zero(root, work, stage=2, **overrides):
    return config(root, work, **{
        'strategy': dict(type='ZeroStrategy', stage=stage), **overrides})


def spoil_gradient(runner):
    """Rank 1 has a gradient that is not finite in the next step."""
    if runner.rank == 1:
        weight = next(
            p for p in runner.model.parameters() if p.requires_grad)
        handle = weight.register_hook(lambda grad: (
            handle.remove(), grad * float('nan'))[1])


def spoil_loss(runner):
    """Rank 1 has an endless loss, and finite gradients, in the next step."""
    loss = runner.model.loss

    def endless(*args, **kwargs):
        runner.model.loss = loss
        losses = loss(*args, **kwargs)
        return dict(losses, loss_rc=losses['loss_rc'] + float('inf'))

    if runner.rank == 1:
        runner.model.loss = endless


def held_by(runner):
    """What a rank has: its piece of the moments, and the whole target."""
    inner = runner.optim_wrapper.optimizer.inner
    return dict(
        moments=[sum(v[name].numel() for v in inner.state.values())
                 for name in MOMENTS],
        target=dict(runner.model.target.named_parameters()))


@pytest.fixture(scope='module')
def folder(image_root, tmp_path_factory):
    """All runs, in one pair of processes and one process alone."""
    folder = tmp_path_factory.mktemp('zero')
    resume = {'resume_from': str(folder / 'stage2/iter_2.pth')}

    def rank(number):
        train(config(image_root, folder / 'whole', False))
        for stage in (1, 2):
            runner = train(zero(
                image_root, folder / f'stage{stage}', stage,
                activation_checkpointing=stage == 1))
            torch.save(held_by(runner), folder / f'{stage}_{number}.pth')
        train(config(image_root, folder / 'zero_to_whole', False, **resume))
        train(zero(image_root, folder / 'zero_to_zero', **resume))
        train(zero(image_root, folder / 'whole_to_zero', resume_from=str(
            folder / 'whole/iter_2.pth')))
        for work, spoil in (('gradient', spoil_gradient),
                            ('loss', spoil_loss)):
            train(zero(image_root, folder / work, **{
                'train_cfg.max_iters': 2}), AtIteration(1, spoil))
        train(zero(image_root, folder / 'weights', resume=False, **{
            'load_from': str(folder / 'whole/iter_2.pth'),
            'optim_wrapper.optimizer.lr': 0., 'train_cfg.max_iters': 2}))

    assert on_ranks(rank, folder) == [0, 0]

    def alone():
        train(config(image_root, folder / 'alone', False, launcher='none', **{
            **resume, 'train_cfg.max_iters': 3}))
        plain = config(image_root, folder / 'plain', False, launcher='none')
        plain.dump(folder / 'config.py')
        checkpoint = str(folder / f'stage2/iter_{STEPS}.pth')
        (folder / 'commands.json').write_text(json.dumps([run_one(c) for c in (
            ['knn', str(folder / 'config.py'), checkpoint, '--work-dir',
             str(folder / 'knn')],
            ['export', str(folder / 'config.py'), checkpoint,
             str(folder / 'timm.safetensors'), '--to', 'timm'])]))

    assert end_fork(start_fork(alone)) == 0
    return folder


@needs_deepspeed
@pytest.mark.parametrize('stage', [1, 2])
def test_ranks_that_share_train_as_ranks_that_do_not(folder, stage):
    """In stage 1 layers are computed again in the backward pass, too."""
    logged = [scalars(folder / kind) for kind in ('whole', f'stage{stage}')]
    assert logged[0].keys() == logged[1].keys() == set(range(1, STEPS + 1))
    for step, row in logged[0].items():
        same = {k: v for k, v in row.items() if k.startswith(
            ('loss', 'rho', 'grad_norm', 'lr', 'health/erank',
             'health/target'))}
        assert {'loss_rc', 'loss_ct', 'grad_norm',
                'health/target_distance'} <= set(same)
        for name, value in same.items():
            assert logged[1][step][name] == pytest.approx(
                value, rel=1e-4, abs=1e-6), (step, name)
    # Parameters, target, statistics; moments of the optimizer; schedules.
    whole, shared = (content(folder / f'{kind}/iter_{STEPS}.pth')
                     for kind in ('whole', f'stage{stage}'))
    assert shared.keys() == whole.keys()
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_close(shared[key], whole[key], rtol=1e-3, atol=1e-5)


@needs_deepspeed
@pytest.mark.parametrize('stage', [1, 2])
def test_ranks_share_the_moments_and_have_the_same_target(folder, stage):
    saved = content(folder / f'stage{stage}/iter_{STEPS}.pth')
    held = [content(folder / f'{stage}_{n}.pth') for n in (0, 1)]
    assert len(held[0]['target']) > 20
    for name, value in held[0]['target'].items():
        assert torch.equal(value, held[1]['target'][name]), name
        assert torch.equal(value, saved['state_dict'][f'target.{name}']), name
    for number, name in enumerate(MOMENTS):
        trained = sum(v[name].numel()
                      for v in saved['optimizer']['state'].values())
        for rank in held:
            assert rank['moments'][number] == pytest.approx(
                trained / 2, rel=0.01)


@needs_deepspeed
def test_each_kind_of_run_goes_on_with_the_others_checkpoint(folder):
    whole, shared = (content(folder / f'{kind}/iter_{STEPS}.pth')
                     for kind in ('whole', 'stage2'))
    for work in ('zero_to_whole', 'whole_to_zero', 'zero_to_zero'):
        made = content(folder / f'{work}/iter_{STEPS}.pth')
        for key in ('state_dict', 'optimizer'):
            assert_close(made[key], whole[key], rtol=1e-3, atol=1e-5)
    # `made` is of the run that never left ZeRO: bit by bit.
    for name, value in shared['state_dict'].items():
        assert torch.equal(made['state_dict'][name], value), name
    for number, state in shared['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(
                made['optimizer']['state'][number][name], value), name


@needs_deepspeed
def test_one_process_goes_on_with_the_checkpoint(folder):
    made = content(folder / 'alone/iter_3.pth')
    steps = {float(v['step']) for v in made['optimizer']['state'].values()}
    assert steps == {3.}
    assert int(made['state_dict']['target.steps']) == 3
    assert scalars(folder / 'alone').keys() == {3}


@needs_deepspeed
@pytest.mark.parametrize('what', ['gradient', 'loss'])
def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_both(
        folder, what):
    assert log(folder / what).count('Skipped the step of iteration') == 1
    made = content(folder / f'{what}/iter_2.pth')
    assert all(v.isfinite().all() for v in made['state_dict'].values())
    assert int(made['state_dict']['target.steps']) == 1
    steps = {float(v['step']) for v in made['optimizer']['state'].values()}
    assert steps == {1.}


@needs_deepspeed
def test_a_new_run_starts_from_weights(folder):
    given, made = (content(folder / f'{kind}/iter_2.pth')['state_dict']
                   for kind in ('whole', 'weights'))
    for name, value in given.items():
        if name.startswith('backbone.'):  # its learning rate was 0
            assert torch.equal(made[name], value), name


@needs_deepspeed
def test_commands_that_know_no_ranks_read_the_checkpoint(folder):
    results = json.loads((folder / 'commands.json').read_text())
    assert [status for status, _ in results] == [0, 0], results
    assert (folder / 'timm.safetensors').is_file()
    images = torch.rand(2, 3, 32, 32)
    tokens = [cmae_mm.load_encoder(folder / f'{kind}/iter_{STEPS}.pth')(images)
              for kind in ('whole', 'stage2')]
    torch.testing.assert_close(*tokens, rtol=1e-3, atol=1e-4)


REFUSED = [
    ('stages 1 and 2, but got 3', {'strategy.stage': 3}),
    ('does not compile', {'compile': True}),
    ("set optim_wrapper.dtype='bfloat16'", {'optim_wrapper.dtype': 'float16'}),
    ('does not accumulate', {'optim_wrapper.accumulative_counts': 2}),
    ('no micro-batches', {'model.micro_batch': 2}),
    ("is SGD; set its type to 'AdamW'", {'optim_wrapper.optimizer': dict(
        _delete_=True, type='SGD', lr=0.1, weight_decay=0.1)}),
    ('amsgrad=True; leave it out', {'optim_wrapper.optimizer.amsgrad': True}),
    ("needs optim_wrapper.type='mmpretrain.AutoAmpOptimWrapper'",
     {'optim_wrapper.type': 'ApexOptimWrapper'}),
    ('clips by the 2-norm', {'optim_wrapper.clip_grad.norm_type': 1}),
    ('clips by the 2-norm', {'optim_wrapper.clip_grad': dict(
        _delete_=True, type='value', clip_value=1.)}),
]


@needs_deepspeed
def test_what_it_does_not_have_is_refused(image_root, tmp_path):
    def rank(number):
        for named, change in REFUSED:
            with pytest.raises(ValueError, match=named):
                train(zero(image_root, tmp_path, **change))

    assert on_ranks(rank, tmp_path) == [0, 0]


def test_where_it_cannot_start_it_says_what_to_do(
        image_root, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    with pytest.raises(ValueError, match='start it with tools/dist_train.sh'):
        ShardedRunner.from_cfg(zero(image_root, tmp_path, launcher='none'))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(MissingLibrary, match=r'pip install .*\[deepspeed\]'):
        ZeroStrategy(work_dir=str(tmp_path))
