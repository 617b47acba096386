"""Two ranks that share an optimizer out train as two that do not.

The ranks are real processes that talk through gloo on CPUs.
"""

import pytest
import torch
from helpers import run_commands
from test_sharding import HOOKS, STEPS, assert_close, config, scalars, train
from tiny_training import AtIteration, content, log, on_ranks

import cmae_mm

pytest.importorskip(
    'deepspeed', reason="DeepSpeed is not installed (extra 'deepspeed')")


def zero(root, work, stage=2, **overrides):
    overrides.setdefault('hooks', HOOKS)
    return config(root, work, **{
        'strategy': dict(type='ZeroStrategy', stage=stage), **overrides})


@pytest.fixture(scope='module')
def folder(image_root, tmp_path_factory):
    """All runs, in one pair of processes after the other."""
    folder = tmp_path_factory.mktemp('zero')

    def spoil(runner):
        """One rank has a gradient that is not finite in the next step."""
        if runner.rank == 1:
            weight = next(p for p in runner.model.parameters()
                          if p.requires_grad)
            handle = weight.register_hook(lambda grad: (
                handle.remove(), grad * float('nan'))[1])

    def rank(number):
        train(config(image_root, folder / 'whole', False, HOOKS))
        for stage in (1, 2):
            runner = train(zero(image_root, folder / f'stage{stage}', stage))
            inner = runner.optim_wrapper.optimizer.inner
            held = sum(v['exp_avg'].numel() for v in inner.state.values())
            target = torch.cat([p.flatten() for n, p in
                                runner.model.target.named_parameters()])
            torch.save((held, target), folder / f'{stage}_{number}.pth')
        for work, source, shares in (
                ('zero_to_whole', 'stage2', False),
                ('whole_to_zero', 'whole', True),
                ('zero_to_zero', 'stage2', True)):
            path = str(folder / source / 'iter_2.pth')
            make = zero if shares else config
            train(make(image_root, folder / work, resume_from=path, **(
                {} if shares else dict(sharded=False, hooks=HOOKS))))
        train(zero(image_root, folder / 'spoilt', hooks=()),
              AtIteration(1, spoil))
        train(zero(image_root, folder / 'weights', resume=False, **{
            'load_from': str(folder / 'whole/iter_2.pth'),
            'optim_wrapper.optimizer.lr': 0., 'train_cfg.max_iters': 2}))

    assert on_ranks(rank, folder) == [0, 0]
    return folder


@pytest.mark.parametrize('stage', [1, 2])
def test_ranks_that_share_train_as_ranks_that_do_not(folder, stage):
    work = f'stage{stage}'
    whole, shared = (content(folder / f'{kind}/iter_{STEPS}.pth')
                     for kind in ('whole', work))
    logged = [scalars(folder / kind) for kind in ('whole', work)]
    assert logged[0].keys() == logged[1].keys() == set(range(1, STEPS + 1))
    figures = set()
    for step, row in logged[0].items():
        same = {k: v for k, v in row.items() if k.startswith(
            ('loss', 'rho', 'grad_norm', 'lr', 'health/erank',
             'health/target', 'knn', 'probe'))}
        figures |= set(same)
        for name, value in same.items():
            assert logged[1][step][name] == pytest.approx(
                value, rel=1e-4, abs=1e-6), (step, name)
    assert {'loss_rc', 'loss_ct', 'health/target_distance', 'grad_norm',
            'knn/top1_k5', 'probe_loss'} <= figures
    assert shared.keys() == whole.keys()
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_close(shared[key], whole[key], rtol=1e-3, atol=1e-5)
    # Each rank's target is that of the other, bit by bit, and the file's.
    held, targets = zip(*(content(folder / f'{stage}_{n}.pth')
                          for n in (0, 1)))
    assert torch.equal(*targets)
    saved = torch.cat([shared['state_dict'][f'target.{n}'].flatten() for n in (
        k[7:] for k in shared['state_dict'] if k.startswith('target.'))
        if 'running' not in n and 'num_batches' not in n and 'steps' not in n])
    assert torch.equal(saved, targets[0])
    trained = sum(v['exp_avg'].numel()
                  for v in whole['optimizer']['state'].values())
    assert max(held) < 0.51 * trained


@pytest.mark.parametrize('work', [
    'zero_to_whole', 'whole_to_zero', 'zero_to_zero'])
def test_each_kind_of_run_goes_on_with_the_others_checkpoint(folder, work):
    expected = content(folder / f'whole/iter_{STEPS}.pth')
    made = content(folder / f'{work}/iter_{STEPS}.pth')
    for key in ('state_dict', 'optimizer'):
        assert_close(made[key], expected[key], rtol=1e-3, atol=1e-5)


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_both(folder):
    assert log(folder / 'spoilt').count('Skipped the step of iteration') == 1
    made = content(folder / f'spoilt/iter_{STEPS}.pth')
    assert all(v.isfinite().all() for v in made['state_dict'].values())
    assert int(made['state_dict']['target.steps']) == STEPS - 1
    steps = {float(v['step']) for v in made['optimizer']['state'].values()}
    assert steps == {STEPS - 1}


def test_a_new_run_starts_from_weights(folder):
    given, made = (content(folder / f'{kind}/iter_2.pth')['state_dict']
                   for kind in ('whole', 'weights'))
    for name, value in given.items():
        if name.startswith('backbone.'):  # its learning rate was 0
            assert torch.equal(made[name], value), name


def test_commands_that_know_no_ranks_read_the_checkpoint(folder, image_root):
    checkpoint = folder / f'stage2/iter_{STEPS}.pth'
    zero(image_root, folder / 'plain', launcher='none').dump(
        folder / 'config.py')
    results = run_commands(
        ['knn', folder / 'config.py', checkpoint, '--work-dir',
         folder / 'knn'],
        ['export', folder / 'config.py', checkpoint,
         folder / 'timm.safetensors', '--to', 'timm'],
        ['train', folder / 'config.py'])
    assert [status for status, _ in results] == [0, 0, 1], results
    assert 'tools/dist_train.sh' in results[2][1].splitlines()[-1]
    images = torch.rand(2, 3, 32, 32)
    tokens = [cmae_mm.load_encoder(folder / f'{kind}/iter_{STEPS}.pth')(images)
              for kind in ('whole', 'stage2')]
    torch.testing.assert_close(*tokens, rtol=1e-3, atol=1e-4)


REFUSED = [
    ('stages 1 and 2, but got 3', {'strategy.stage': 3}),
    ('does not accumulate', {'optim_wrapper.accumulative_counts': 2}),
    ('no micro-batches', {'model.micro_batch': 2}),
    ('is SGD', {'optim_wrapper.optimizer': dict(
        _delete_=True, type='SGD', lr=0.1, weight_decay=0.1)}),
    ('needs the settings of an AutoAmpOptimWrapper',
     {'optim_wrapper.type': 'ApexOptimWrapper'}),
    ('clips by the 2-norm', {'optim_wrapper.clip_grad.norm_type': 1}),
]


def test_what_it_does_not_have_is_refused(image_root, tmp_path):
    def rank(number):
        for named, change in REFUSED:
            with pytest.raises(ValueError, match=named):
                train(zero(image_root, tmp_path, **change))

    assert on_ranks(rank, tmp_path) == [0, 0]
