"""N ranks train like one process with the whole batch.

The ranks are real processes that talk through gloo; see ``gloo_norm.py`` for
what stands in for ``SyncBatchNorm``, which refuses CPUs.
"""
import pytest
import torch
import torch.nn.functional as F
from gloo_norm import GlooSyncBN
from helpers import build, model_cfg
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.model import MMDistributedDataParallel
from run_ranks import digest
from tiny_training import on_ranks
from torch.utils.data import DataLoader

from cmae_mm.engine import AutoAmpOptimWrapper, PretrainCheckHook
from cmae_mm.engine.hooks.check_hooks import batch_sizes, check_loader

IMAGES, COMPARED, STEPS = 8, 3, 20
# Four ranks take turns on two cores, so that they make fewer steps.
RANKS = {2: STEPS, 4: 5}


def train(rank=0, steps=STEPS):
    """Train on a rank's share of each batch; give what can be compared."""
    torch.manual_seed(0)
    norm = dict(norm_cfg=dict(type='GlooSyncBN'))
    model = build(model_cfg(
        width=16, depth=1, img_size=16,
        **{'neck.projector': norm, 'head.contrastive.predictor': norm}))
    model = model.double()
    model.head.contrastive.float()  # which always computes in float32
    assert sum(isinstance(m, GlooSyncBN) for m in model.modules()) == 3
    views = torch.randn(STEPS, 2, IMAGES, 3, 16, 16).double()[:steps]
    masks = [model.backbone.generate_mask(IMAGES, 'cpu') for _ in views]
    ranks = get_world_size()
    share = slice(rank * IMAGES // ranks, (rank + 1) * IMAGES // ranks)
    wrapped = MMDistributedDataParallel(
        model, broadcast_buffers=False) if ranks > 1 else model
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1,
        momentum=0.9)
    wrapper = AutoAmpOptimWrapper(
        dtype='float32', optimizer=optimizer, clip_grad=dict(max_norm=1.))
    model.target.follow(optimizer, model.backbone, model.neck.projector)
    seen = dict(losses=[], logits=[], labels=[], grads=[], targets=[])
    optimizer.register_step_pre_hook(lambda *args: seen['grads'].append(
        {n: p.grad.clone() for n, p in model.named_parameters()
         if p.grad is not None}))

    def watched(logits, labels):
        seen['logits'].append(logits.detach())
        seen['labels'].append(labels)
        return cross_entropy(logits, labels)

    cross_entropy, F.cross_entropy = F.cross_entropy, watched
    try:
        for batch, mask in zip(views, masks):
            model.backbone.generate_mask = lambda *_, m=mask[share]: m
            with wrapper.optim_context(wrapped):
                losses = wrapped(list(batch[:, share]), mode='loss')
            wrapper.update_params(model.parse_losses(losses)[0])
            seen['losses'].append({k: v.item() for k, v in losses.items()})
            seen['targets'].append(digest(model.target.parameters()))
            if len(seen['losses']) == COMPARED:
                seen['state'] = {
                    k: v.clone() for k, v in model.state_dict().items()}
    finally:
        F.cross_entropy = cross_entropy
    return seen


@pytest.fixture(scope='module')
def alone():
    return train(steps=STEPS)


@pytest.mark.parametrize('count', RANKS)
def test_ranks_train_as_one_process_does(alone, count, tmp_path):
    def rank(number):
        torch.save(train(number, RANKS[count]), tmp_path / f'{number}.pt')

    assert on_ranks(rank, tmp_path, count) == [0] * count
    ranks = [torch.load(tmp_path / f'{n}.pt') for n in range(count)]
    for step in range(COMPARED):
        for name, value in alone['losses'][step].items():
            mean = sum(r['losses'][step][name] for r in ranks) / count
            assert mean == pytest.approx(value, rel=1e-5), (step, name)
        # Each rank's labels point at its own images among those of all.
        labels = torch.cat([r['labels'][step] for r in ranks])
        assert labels.tolist() == list(range(IMAGES))
        logits = torch.cat([r['logits'][step] for r in ranks])
        torch.testing.assert_close(
            logits, alone['logits'][step], rtol=1e-5, atol=1e-5)
        for rank_seen in ranks:
            grads = rank_seen['grads'][step]
            assert grads.keys() == alone['grads'][step].keys()
            for name, grad in alone['grads'][step].items():
                torch.testing.assert_close(
                    grads[name], grad, rtol=1e-4, atol=1e-6)
    # After three steps: parameters, target, BatchNorm's running statistics.
    for name, value in alone['state'].items():
        torch.testing.assert_close(
            ranks[-1]['state'][name], value, rtol=1e-4, atol=1e-6)
    assert len(set(ranks[0]['targets'])) == RANKS[count]
    for rank_seen in ranks[1:]:
        assert rank_seen['targets'] == ranks[0]['targets']


@pytest.mark.parametrize('case, named', [
    ('fewer', r'rank 1 finds 15 images and rank 0 16'),
    ('uneven', r'an epoch has 1 batches on rank 1 and 2 on rank 0, which '
     'would hang.*round_up')])
def test_ranks_with_different_lengths_raise(case, named, tmp_path):
    def rank(number):
        images = 16 - number if case == 'fewer' else 9
        loader = DataLoader(
            range(images), batch_size=4,
            sampler=DefaultSampler(range(images), round_up=case == 'fewer'))
        with pytest.raises(ValueError, match=named):
            check_loader(loader)

    assert on_ranks(rank, tmp_path) == [0, 0]


def test_copies_in_a_batch_are_reported(monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.engine.hooks.check_hooks.print_log',
                        lambda text, **_: said.append(text))
    loader = DataLoader(range(3), 4, sampler=InfiniteSampler(range(3)))
    PretrainCheckHook._check_shares(loader)
    assert 'has 3 images, fewer than a batch of 4' in said[0]


def test_last_batches_of_other_sizes_are_refused(tmp_path):
    def rank(number):
        sampler = DefaultSampler(range(7), round_up=False)
        loader = DataLoader(range(7), batch_size=4, sampler=sampler)
        assert check_loader(loader) == [4, 3]
        with pytest.raises(ValueError, match=r'one size .* draw \[4, 3\]'):
            PretrainCheckHook._check_shares(loader)

    assert on_ranks(rank, tmp_path) == [0, 0]


@pytest.mark.parametrize('images, drop, sizes', [
    (10, False, [4, 1]), (10, True, [4]), (16, False, [4])])
def test_the_last_batch_of_a_rank_is_known(images, drop, sizes, tmp_path):
    def rank(number):
        assert batch_sizes(DataLoader(
            range(images), batch_size=4, drop_last=drop,
            sampler=DefaultSampler(range(images)))) == sizes

    assert on_ranks(rank, tmp_path) == [0, 0]
