"""Loaders: seeds of views, workers, prefetching, speed."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, write_images
from images import preprocessor
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from cmae_mm.datasets import PretrainingDataset
from cmae_mm.engine.hooks.step_hooks import DevicePrefetcher


def views_of_two_epochs(root, num_workers):
    """All views of a loader, through a runner's own construction."""
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            sampler=dict(type='SeededSampler', shuffle=True, seed=3),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='PretrainingDataset',
                data_root=str(root),
                pipeline=[
                    dict(type='LoadCanvas', size=32),
                    dict(
                        type='PackInputs',
                        meta_keys=('img_path', 'view_seed'))
                ])))
    module = preprocessor()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        np.random.seed(num_workers)  # must not matter
        epochs.append([module(batch, training=True)['inputs']
                       for batch in loader])
    return epochs


def test_the_same_views_whatever_the_number_of_workers(tmp_path):
    write_images(tmp_path, 11)
    (tmp_path / 'broken.jpg').write_text('no image')
    runs = [views_of_two_epochs(tmp_path, n) for n in (0, 1, 2)]
    for other in runs[1:]:
        for epoch, again in zip(runs[0], other):
            for views, same in zip(epoch, again):
                assert all(torch.equal(a, b) for a, b in zip(views, same))
    # while another epoch has other views
    first, second = runs[0]
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(first, second))


def test_seed_determines_all_draws(tmp_path):
    write_images(tmp_path, 1)
    dataset = PretrainingDataset(
        data_root=str(tmp_path),
        pipeline=[dict(type='LoadCanvas', size=32)])
    from cmae_mm.datasets.samplers import SeededIndex
    one, two, other = (dataset[SeededIndex(0, seed)]['img']
                       for seed in (5, 5, 6))
    assert (one == two).all() and not (one == other).all()
    module = preprocessor()
    a, b = (module.draw_params(3, seeds) for seeds in ([1, 2, 3], [1, 2, 4]))
    assert not torch.equal(a.factors, b.factors)


def test_the_benchmark_reports_every_key(tmp_path):
    write_images(tmp_path / 'data', 3, size=300)
    out = tmp_path / 'out.json'
    done = subprocess.run([
        sys.executable, 'tools/benchmarks/benchmark_data.py', '--data',
        str(tmp_path / 'data'), '--seconds', '2', '--rounds', '1',
        '--batch-size', '4', '--json', str(out)
    ], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    import json
    result = json.loads(out.read_text())
    assert set(result) == {
        'decode', 'worker', 'cpu_two_views', 'preprocessor',
        'worker_over_cpu', 'worker_over_decode'
    }
    assert all(v > 0 for v in result.values())
    assert '(b) / (c)' in done.stdout and Path(out).exists()


class KillItself:

    def __call__(self, results):
        import os
        import signal
        os.kill(os.getpid(), signal.SIGKILL)


class Fail:

    def __call__(self, results):
        raise KeyError('a mistake in a transform')


@pytest.mark.parametrize('transform, cause', [
    (KillItself(), 'killed by signal|worker .* exited unexpectedly'),
    (Fail(), 'a mistake in a transform'),
])
def test_a_workers_death_is_reported_with_its_cause(image_root, transform,
                                                    cause):
    dataset = PretrainingDataset(
        data_root=str(image_root), pipeline=[transform])
    loader = torch.utils.data.DataLoader(dataset, num_workers=1)
    with pytest.raises((RuntimeError, KeyError), match=cause):
        next(iter(loader))


@pytest.mark.parametrize('device', [
    'cpu',
    pytest.param(
        'cuda',
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason='needs a GPU'))
])
@pytest.mark.parametrize('count', [0, 1, 7])
def test_prefetched_batches_are_the_loaders(device, count):
    """All of them, in order, on the device; each is asked for in advance."""
    asked = []

    def collate(samples):
        asked.append(samples[0])
        return dict(
            inputs=torch.full((2, 3), samples[0], dtype=torch.uint8),
            data_samples=[f'sample {s}' for s in samples])

    loader = DataLoader(
        range(2 * count), batch_size=2, collate_fn=collate,
        pin_memory=device == 'cuda')
    prefetcher = DevicePrefetcher(loader, torch.device(device))
    assert len(prefetcher) == count and prefetcher.batch_size == 2
    assert prefetcher.sampler is loader.sampler
    seen = []
    for place, batch in enumerate(prefetcher):
        assert len(asked) == min(place + 2, count)
        assert batch['inputs'].device.type == device
        seen.append(int(batch['inputs'][0, 0]))
        assert batch['data_samples'][0] == f'sample {seen[-1]}'
    assert seen == list(range(0, 2 * count, 2))
